"""An SVF expert merged into a GGUF base, as a GGUF file: what llama.cpp, and what is built on it, reads.

    W' = W (I + P diag(z - 1) P^T), or (I + P diag(z - 1) P^T) W      (svf/forms.py)

W is what the blocks of the base file hold, in fp32; P and z are those of the policy. W' is stored in F16 or Q8_0. All
else (metadata, tokenizer, every tensor that no z scales) is copied as it is: its bytes, and its type.

A file may hold the rows of a matrix in another order than the model does (llama.cpp rotates interleaved pairs of rows
of q and k, transformers halves). Which order that is, is not looked up but found: the one that makes the file's matrix
the loaded one, to the bit. A matrix for which there is none is refused.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor

from transformer2.errors import UserError, one_line
from transformer2.files import fsync
from transformer2.svf.forms import compose_weight
from transformer2.svf.layer import SVFLayer, tuned_layers

if TYPE_CHECKING:
    from gguf import GGUFReader, GGUFWriter

__all__ = ["GGUFType", "export_gguf"]

GGUFType = Literal["F16", "Q8_0"]
_OTHERWISE = "export with --format hf and convert that folder with llama.cpp's convert_hf_to_gguf.py"


def export_gguf(policy: PeftModel, base_file: str | Path, out: str | Path, gguf_type: GGUFType = "F16") -> Path:
    """Write a GGUF base with the active SVF adapters merged; one matrix at a time is in memory.

    Args:
        policy: An SVF policy on the model that `base_file` holds, in any dtype.
        base_file: The GGUF file.
        out: The new file.
        gguf_type: How merged matrices are stored.

    Returns:
        The new file, absolute.

    Raises:
        UserError: The policy is no SVF policy of this file, a matrix cannot be stored so or is not finite once merged,
            or the file exists or cannot be written.
    """
    from gguf import GGUFReader, GGUFWriter

    out = Path(os.path.abspath(Path(out).expanduser()))
    if os.path.lexists(out):
        raise UserError(f"{out} exists; name a new file to export to")
    reader = GGUFReader(base_file)
    if reader.byte_order != "I":
        raise UserError(
            f"{base_file} has the byte order of another machine; convert it with gguf's gguf_convert_endian"
        )
    layers = _layers_by_tensor(policy, reader)
    fresh = out.with_name(f".{out.name}.{os.getpid()}")  # whole or absent
    writer = GGUFWriter(None, str(reader.fields["general.architecture"].contents()))
    try:
        _describe(writer, reader, layers, gguf_type)
        out.parent.mkdir(parents=True, exist_ok=True)
        writer.write_header_to_file(fresh)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in reader.tensors:
            layer = layers.get(tensor.name)
            writer.write_tensor_data(tensor.data if layer is None else _merged(tensor, layer, policy, gguf_type))
        writer.close()
        fsync(fresh)
        os.replace(fresh, out)
        fsync(out.parent)
    except OSError as e:
        raise UserError(f"{out} cannot be written: {e.strerror or e}; free some space or choose another one") from e
    finally:
        with contextlib.suppress(OSError):
            writer.close()
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
    return out


def _layers_by_tensor(policy: PeftModel, reader: GGUFReader) -> dict[str, SVFLayer]:
    """The layers that z scales, by the names of their tensors in the file."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    config = policy.active_peft_config
    if config.peft_type.value != "SVF" or config.modules_to_save:
        raise UserError(f"a GGUF file is written from an expert that is z alone; {_OTHERWISE}")
    name = str(reader.fields["general.architecture"].contents())
    arch = next((arch for arch, known in MODEL_ARCH_NAMES.items() if known == name), None)
    if arch is None:
        raise UserError(f"the installed gguf knows no architecture {name!r}; upgrade it (pip install -U gguf)")
    names = get_tensor_name_map(arch, int(reader.fields[f"{name}.block_count"].contents()))
    present = {tensor.name for tensor in reader.tensors}
    found: dict[str, SVFLayer] = {}
    for path, layer in tuned_layers(policy).items():
        tensor = f"{names.get_name(path)}.weight"
        if tensor not in present or tensor in found:
            raise UserError(f"the GGUF base has no tensor of its own for {path}, which the expert tunes; {_OTHERWISE}")
        found[tensor] = layer
    return found


def _describe(writer: GGUFWriter, reader: GGUFReader, layers: dict[str, SVFLayer], gguf_type: GGUFType) -> None:
    """Metadata as in the base, and names, shapes and types of the tensors, in the base's order."""
    from gguf import GGML_QUANT_VERSION, GGMLQuantizationType, GGUFValueType, Keys, LlamaFileType
    from gguf.quants import quant_shape_to_byte_shape

    weights: Counter[str] = Counter()
    for tensor in reader.tensors:
        kind, data = tensor.tensor_type, tensor.data
        shape, dtype, size = data.shape, data.dtype, data.nbytes
        if tensor.name in layers:
            kind = GGMLQuantizationType[gguf_type]
            try:
                shape = quant_shape_to_byte_shape(tuple(tensor.shape.tolist()[::-1]), kind)
            except ValueError as e:
                raise UserError(
                    f"{gguf_type} cannot store {tensor.name} ({one_line(e)}); export with --gguf_type F16"
                ) from e
            dtype, size = np.dtype(np.uint8), shape[0] * shape[1]
        weights[kind.name] += int(tensor.n_elements)
        writer.add_tensor_info(tensor.name, shape, dtype, size, raw_dtype=kind)
    changed: dict[str, Any] = {}
    if weights.most_common(1)[0][0] == gguf_type:
        changed[Keys.General.FILE_TYPE] = LlamaFileType[f"MOSTLY_{gguf_type}"]
    if gguf_type != "F16":
        changed[Keys.General.QUANTIZATION_VERSION] = GGML_QUANT_VERSION
    # The writer writes these itself.
    written = {Keys.General.ARCHITECTURE, *(name for name in reader.fields if name.startswith("GGUF."))}
    writer.data_alignment = reader.alignment
    for name, field in reader.fields.items():
        if name in written | changed.keys():
            continue
        is_array = field.types[0] == GGUFValueType.ARRAY
        if is_array and len(field.types) != 2:  # gguf reads arrays of arrays flat, and writes no empty ones
            raise UserError(f"{name} of the GGUF base is an empty or nested array, which is not copied; {_OTHERWISE}")
        writer.add_key_value(name, field.contents(), field.types[0], field.types[1] if is_array else None)
    for name, value in changed.items():
        writer.add_key_value(name, int(value), GGUFValueType.UINT32)


@torch.no_grad()
def _merged(tensor: Any, layer: SVFLayer, policy: PeftModel, gguf_type: GGUFType) -> Any:
    """W' of one tensor, as the blocks of its type (an array of bytes)."""
    from gguf import GGMLQuantizationType, dequantize, quantize

    kind = GGMLQuantizationType[gguf_type]
    stored_mn = torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
    loaded_mn = layer.weight_mn().cpu()
    basis_RR, delta_R = layer.svf_basis.detach().cpu(), layer.detached_delta(layer.active_adapters).cpu()
    found: list[Tensor] = []
    for order_m in _row_orders(policy.get_base_model().config, stored_mn):
        weight_mn = stored_mn[order_m]
        if torch.equal(weight_mn.to(loaded_mn.dtype), loaded_mn):
            merged_mn = torch.empty_like(stored_mn)
            merged_mn[order_m] = compose_weight(weight_mn, basis_RR, delta_R, layer.side)
            found.append(merged_mn)
    if not found or not all(torch.equal(other_mn, found[0]) for other_mn in found[1:]):
        raise UserError(f"{tensor.name} is not the base model's matrix in an order known here; {_OTHERWISE}")
    with np.errstate(over="ignore", invalid="ignore"):
        data = quantize(found[0].numpy(), kind)
        finite = bool(np.isfinite(dequantize(data, kind)).all())
    if not finite:
        raise UserError(
            f"{tensor.name} is not finite once merged and stored as {gguf_type} (largest |z - 1| is "
            f"{float(delta_R.abs().max()):.3g}); nothing was written. Is the expert damaged?"
        )
    return data.view(np.uint8)


def _row_orders(config: Any, stored_mn: Tensor) -> Iterator[Tensor]:
    """Rows of a file's matrix in the order of the model's: as they are, or pairs of a head's rows pulled apart."""
    rows = stored_mn.shape[0]
    order_m = torch.arange(rows)
    yield order_m
    config = config.get_text_config()
    for heads in {getattr(config, name, None) for name in ("num_attention_heads", "num_key_value_heads")}:
        if heads and rows % (2 * heads) == 0:
            yield order_m.view(heads, -1, 2).transpose(1, 2).reshape(-1)
