"""Celery's settings for the factory, each with its reason. Loaded when the app is first used."""

from kombu.entity import Exchange, Queue

from factory.config import load_settings
from factory.queues import DEFAULT_BROKER, QUEUES

_settings = load_settings()
_VISIBILITY = _settings.visibility_timeout  # s; at least 3x the longest task or countdown
_RETRIES = {"max_retries": 60, "interval_start": 0, "interval_step": 0.2, "interval_max": 2}

broker_url = _settings.broker_url or DEFAULT_BROKER
result_backend = broker_url

# ---- messages: JSON only; nothing that arrives is executed
task_serializer = result_serializer = event_serializer = "json"
accept_content = result_accept_content = ["json"]

# ---- queues: file name in workers/ = queue name; gpu.<model> is made when a run asks for it (gpu_queue: model)
task_queues = [Queue(name, Exchange(name), routing_key=name) for name in QUEUES]
task_default_queue = "reduce"
task_create_missing_queues = True  # for gpu.<model>; a mistyped -Q is refused in factory/celery.py
task_routes = {f"workers.{name}.*": {"queue": name} for name in QUEUES}

# ---- losing a worker loses nothing: a task is acknowledged when done, else delivered again
task_acks_late = True
task_reject_on_worker_lost = True
worker_prefetch_multiplier = 1
worker_deduplicate_successful_tasks = False  # its short cut skips the chord's count: the chord hangs
worker_cancel_long_running_tasks_on_connection_loss = False  # a broker restart would fail chords

# ---- the broker may go away for minutes
broker_connection_retry_on_startup = True
broker_connection_max_retries = None
broker_channel_error_retry = True  # a failover: for seconds the broker is a replica that refuses to write
broker_pool_limit = 64
broker_transport_options = {
    "visibility_timeout": _VISIBILITY,
    "unacked_restore_interval": min(10, _VISIBILITY / 4),  # s; with the next line, back 10 s after the timeout, not 100
    "unacked_restore_throttle": 1,
    "max_connections": 200,  # kombu's 10 loses messages with many threads
    "socket_timeout": 30,
    "socket_connect_timeout": 5,
    "socket_keepalive": True,
    "health_check_interval": 25,
}
visibility_timeout = _VISIBILITY
task_publish_retry_policy = _RETRIES
redis_socket_timeout = 30
redis_socket_keepalive = True
redis_backend_health_check_interval = 25
redis_max_connections = 200

# ---- results: finished work survives an outage, and a chord outlives its slowest task
result_backend_always_retry = True  # without it, a 12 s outage turned finished tasks into failures
result_backend_max_retries = 60
result_backend_transport_options = {
    "visibility_timeout": _VISIBILITY,
    "retry_policy": _RETRIES,
    "additional_connection_errors": ["redis.exceptions.ReadOnlyError"],  # a failover, once more
}
result_expires = 24 * 3600
result_chord_expires = 7 * 24 * 3600

# ---- workers: threads everywhere (CUDA forbids forks, calls to the teacher wait); see factory/celery.py for -c
worker_pool = "threads"
worker_eta_task_limit = 1000
worker_send_task_events = True
task_send_sent_event = True
task_track_started = True
worker_hijack_root_logger = False
