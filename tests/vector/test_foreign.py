"""Vectors of other programs: those of a KV cache become ours, those of the residual stream are refused by kind."""

from __future__ import annotations

import pytest
import torch

from factory.errors import VectorError
from factory.vector.foreign import import_vector
from factory.vector.setting import Setting
from factory.vector.steer import Steering, generate
from factory.vector.vector import SteeringVector


def cache_steering_file(folder, shape, *, layers=(0, 1, 2, 3), flat=False):
    """What cache-steering's authors save: per layer a mean over pairs, and the activations of every pair."""
    generator = torch.Generator().manual_seed(3)
    values = {layer: torch.randn(*shape, generator=generator) for layer in layers}
    content = {
        "values": {layer: tensor.flatten() if flat else tensor for layer, tensor in values.items()},
        "keys": {layer: torch.randn(*shape, generator=generator) for layer in layers},
        "activations": {layer: torch.randn(7, 64, generator=generator) for layer in layers},
    }
    path = folder / "stepwise.pt"
    torch.save(content, path)
    return path, values


@pytest.mark.parametrize("flat", [False, True])
def test_the_values_of_a_cache_steering_file_steer_as_they_are(tmp_path, target, target_folder, flat):
    path, values = cache_steering_file(tmp_path, target.shape, flat=flat)
    vector = import_vector(path, model=str(target_folder), style="stepwise")
    vector.save(tmp_path / "mine.pt")
    vector = SteeringVector.load(tmp_path / "mine.pt")
    assert vector.layer_indices == [0, 1, 2, 3]
    assert torch.equal(vector.value_vector, torch.stack([values[layer] for layer in range(4)]))
    assert vector.metadata["pairs_used"] == 7
    plain = generate(target, "Why?", max_new_tokens=8)
    assert generate(target, "Why?", vector=vector, strength=0.0, max_new_tokens=8) == plain
    assert generate(target, "Why?", vector=vector, strength=40.0, max_new_tokens=8) != plain


def test_the_keys_of_a_cache_steering_file_are_left_out_and_refused_with_the_reason(tmp_path, target, target_folder):
    path, _ = cache_steering_file(tmp_path, target.shape)
    vector = import_vector(path, model=str(target_folder), style="stepwise")
    assert not vector.key_vector.any()
    with pytest.raises(VectorError, match=r"averaged as cached.*key_strength 0"):
        generate(target, "Why?", vector=Steering(vector, 1.0, key_strength=0.5), max_new_tokens=4)


def gguf_of_repeng(path):
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "controlvector")
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_tensor("direction.1", torch.ones(64).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def vector_of_steering_vectors(path):
    from steering_vectors import SteeringVector as Theirs

    torch.save(Theirs({1: torch.ones(64)}, "decoder_block"), path)


FOREIGN = {
    "repeng": (gguf_of_repeng, "residual stream.*GGUF.*svf generate"),
    "steering-vectors": (vector_of_steering_vectors, "residual stream.*steering-vectors.*svf generate"),
    "tensors by layer": (lambda path: torch.save({1: torch.ones(64)}, path), "residual stream.*svf generate"),
    "text": (lambda path: path.write_text("hello"), "no known kind.*expected a .pt file of cache-steering"),
    "another dict": (lambda path: torch.save({"weights": torch.ones(2)}, path), "holds weights, and no 'values'"),
    "another model": (lambda path: cache_steering_file(path.parent, (3, 8), layers=(0,))[0].rename(path), "KV heads"),
    "a deeper model": (
        lambda path: cache_steering_file(path.parent, (2, 16), layers=(3, 4))[0].rename(path),
        "layer 4; .* layers 0 to 3",
    ),
    "values that are not finite": (
        lambda path: torch.save({"values": {0: torch.full((2, 16), torch.inf)}, "keys": {}}, path),
        "not finite",
    ),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_of_another_kind_is_refused_with_what_it_is_and_what_to_do(tmp_path, target_folder, kind):
    write, says = FOREIGN[kind]
    path = tmp_path / "foreign.file"
    write(path)
    with pytest.raises(VectorError, match=f"(?s){says}"):
        import_vector(path, model=str(target_folder), style="x")


def test_a_vector_of_our_own_needs_no_import(tmp_path, target, target_folder):
    path, _ = cache_steering_file(tmp_path, target.shape)
    import_vector(path, model=str(target_folder), style="x").save(tmp_path / "ours.pt")
    with pytest.raises(VectorError, match="already"):
        import_vector(tmp_path / "ours.pt", model=str(target_folder), style="x")


def test_flat_values_of_a_model_that_is_not_here_cannot_be_cut(tmp_path, target):
    path, _ = cache_steering_file(tmp_path, target.shape, flat=True)
    with pytest.raises(VectorError, match="svf download"):
        import_vector(path, model="lab/elsewhere", style="x")


def test_an_imported_vector_is_added_at_the_one_position_where_it_was_read(tmp_path, target, target_folder):
    path, _ = cache_steering_file(tmp_path, target.shape)
    vector = import_vector(path, model=str(target_folder), style="x")
    assert Setting.recommended(vector).n_positions == 1
