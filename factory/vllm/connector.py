"""A KV connector for stock vLLM that adds steering vectors to the cache of the requests that ask for them.

    vllm serve MODEL --kv-transfer-config '{"kv_connector": "SteeringConnector",
        "kv_connector_module_path": "factory.vllm.connector", "kv_role": "kv_both",
        "kv_connector_extra_config": {"vectors": "FOLDER"}}'

vLLM makes one in the scheduler and one in each worker. Written for vLLM 0.32; nothing of vLLM is patched.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorRole,
    KVConnectorTransferResults,
)
from vllm.distributed.parallel_state import get_tensor_model_parallel_rank
from vllm.model_executor.layers.rotary_embedding import _ROPE_DICT, RotaryEmbedding
from vllm.model_executor.models.utils import extract_layer_index
from vllm.tokenizers.registry import cached_tokenizer_from_config

from factory.errors import ServingError
from factory.vllm.edit import shard_of
from factory.vllm.editor import Editor, PagedLayer, Turning
from factory.vllm.layout import BlockLayout, find_layout
from factory.vllm.model import KEYS, ServedModel, open_library
from factory.vllm.planner import PagedPool, Planner, StepPlan


class SteeringConnector(KVConnectorBase_V1):  # type: ignore[misc]
    """Asks its half in this process: the planner in the scheduler, the editor in a worker."""

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        check_supported(vllm_config)
        self.model = ServedModel.of(vllm_config)
        self.planner: Planner | None = None
        self.editor: Editor | None = None
        if role is KVConnectorRole.SCHEDULER:
            self.planner = Planner(
                self.model,
                open_library(vllm_config, self.model),
                neutral_id(vllm_config.model_config),
                int(vllm_config.model_config.max_model_len),
            )

    @property
    def requires_kv_delivery(self) -> bool:
        """Nothing is handed to another engine."""
        return False

    # ---- in the scheduler

    def bind_kv_cache_manager(self, kv_cache_manager: Any) -> None:
        """Learn how the cache is divided.

        Raises:
            ServingError: its layers are of several kinds that do not share one table of blocks.
        """
        super().bind_kv_cache_manager(kv_cache_manager)
        groups = self._kv_cache_config.kv_cache_groups
        if len(groups) != 1:
            raise ServingError(f"the KV cache has {len(groups)} groups of layers; only models with one can be steered")
        self._planner.pool = PagedPool(
            lambda request_id: kv_cache_manager.get_block_ids(request_id)[0],
            int(groups[0].kv_cache_spec.block_size),
            int(kv_cache_manager.block_pool.hash_block_size),
        )

    @property
    def _planner(self) -> Planner:
        if self.planner is None:
            raise RuntimeError("this is a worker's half of the connector")
        return self.planner

    def on_new_request(self, request: Any) -> None:
        """See :meth:`Planner.admit`."""
        self._planner.admit(request)

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        """Nothing is loaded; a refused request waits for a load that fails, which vLLM tells its client."""
        return (1, True) if request.request_id in self._planner.refused else (0, False)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """See :meth:`Planner.fails`."""
        self._planner.fails(request.request_id, num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> StepPlan:
        """See :meth:`Planner.plan`."""
        return self._planner.plan(scheduler_output)

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, None]:
        """See :meth:`Planner.forget`."""
        self._planner.forget(request.request_id)
        return False, None

    # ---- in a worker

    def register_kv_caches(self, kv_caches: dict[str, Tensor]) -> None:
        """Find out how this worker's cache is laid out.

        Raises:
            ServingError: a layer's cache is not one of keys and values, or cannot be read back.
        """
        config = self._vllm_config
        layers = config.compilation_config.static_forward_context
        block_size = int(self._kv_cache_config.kv_cache_groups[0].kv_cache_spec.block_size)
        n_tokens = int(self._kv_cache_config.num_blocks) * block_size
        n_ranks = config.parallel_config.tensor_parallel_size
        heads = shard_of(self.model.shape[0], n_ranks, get_tensor_model_parallel_rank())
        paged = paged_layers({name: layers[name] for name in kv_caches}, n_tokens)
        self.editor = Editor(paged, heads, turning(self.model))

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Nothing is loaded."""

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing is loaded."""

    def save_kv_layer(self, layer_name: str, kv_layer: Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """Nothing is saved."""

    def wait_for_save(self) -> None:
        """The forward pass is done (on a GPU: is queued before this): add the vectors."""
        plan: StepPlan = self._get_connector_metadata()
        if plan.edits and self.editor is not None:
            self.editor.apply(plan.edits)

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        """Report the refused requests as loads that failed."""
        refused = set(self._get_connector_metadata().refused) if self.has_connector_metadata() else set()
        return KVConnectorTransferResults(finished_recving=set(refused), failed_recving=set(refused))


def check_supported(vllm_config: Any) -> None:
    """Refuse at the start what cannot be steered.

    Raises:
        ServingError: says what, and what to do.
    """
    dtype = str(vllm_config.cache_config.cache_dtype)
    if dtype not in ("auto", "float16", "bfloat16", "float32"):
        raise ServingError(f"--kv-cache-dtype {dtype}: vectors are added to caches of whole numbers only; use auto")
    parallel = vllm_config.parallel_config
    if max(parallel.decode_context_parallel_size, getattr(parallel, "prefill_context_parallel_size", 1)) > 1:
        raise ServingError("context parallelism spreads a prompt's cache over workers; serve without it")
    if vllm_config.model_config.use_mla:
        raise ServingError("latent attention (MLA) caches no keys and values of heads; choose another model")


def neutral_id(model_config: Any) -> int:
    """The token from which generation starts: a line break, as an id, as :attr:`Target.neutral_id` has it."""
    tokenizer = cached_tokenizer_from_config(model_config)
    return int(tokenizer.encode("\n", add_special_tokens=False)[-1])


def paged_layers(layers: dict[str, Any], n_tokens: int) -> dict[int, PagedLayer]:
    """The layers of this worker by their index in the model; ``n_tokens`` is how many the cache holds.

    Raises:
        ServingError: two layers have one index, as with a drafter, or a layer is not of keys and values.
    """
    found: dict[int, PagedLayer] = {}
    layouts: dict[tuple[Any, ...], BlockLayout] = {}
    for name, layer in layers.items():
        index, cache = extract_layer_index(name), layer.kv_cache
        if index in found or not isinstance(cache, Tensor) or layer.head_size != layer.head_size_v:
            raise ServingError(f"layer {name} of type {type(layer).__name__} cannot be steered beside the others")
        heads = (int(layer.num_kv_heads), int(layer.head_size))
        kind = (type(layer.impl), cache.shape, cache.stride(), cache.dtype, heads)
        if kind not in layouts:
            layouts[kind] = _layout_of(layer, cache, n_tokens // len(cache), heads)
        found[index] = PagedLayer(cache, layouts[kind])
    return found


def _layout_of(layer: Any, cache: Tensor, block_size: int, heads: tuple[int, int]) -> BlockLayout:
    def write(keys: Tensor, values: Tensor, slots: Tensor) -> None:
        layer.impl.do_kv_cache_update(layer, keys, values, cache, slots)

    with torch.inference_mode():
        return find_layout(cache, block_size, heads, write)


def turning(model: ServedModel) -> Turning:
    """How the loaded model turns its keys; where it has no rotary embedding, they stay as they are.

    Raises:
        ServingError: by its configuration the model turns keys as most do, and by its code it does not.
    """
    ropes = list(_ROPE_DICT.values())
    if not ropes or model.keys_refusal:
        return lambda keys, positions: keys
    rope = ropes[0]
    if len(ropes) > 1 or type(rope).forward_native is not RotaryEmbedding.forward_native:
        kinds = ", ".join(sorted({type(one).__name__ for one in ropes}))
        raise ServingError(
            f"the model turns its keys by {len(ropes)} rotary embeddings ({kinds}), expected a plain one. "
            f'Put "{KEYS}": false into kv_connector_extra_config: values steer'
        )

    def turn(keys: Tensor, positions: Tensor) -> Tensor:
        angles = rope.cos_sin_cache.to(keys.device, torch.float32)
        turned: Tensor = RotaryEmbedding.forward_static(
            positions, keys.reshape(len(keys), -1), None, rope.head_size, rope.rotary_dim, angles, rope.is_neox_style
        )[0]
        return turned.view(keys.shape)

    return turn
