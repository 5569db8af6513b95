"""The machines: broker, embedded workers, health checks and metrics."""
