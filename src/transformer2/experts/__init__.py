"""Experts: one z per tuned matrix, as folders that PEFT loads. Read and verify, mix, shuffle, compare, import.

experts = load_experts(["experts/math", "experts/code"])
print(compare_experts(experts))
save_expert(mix_experts(experts, [0.7, 0.7]), "experts/both")
"""

from __future__ import annotations

from transformer2.experts.compare import Comparison, compare_experts, show_expert
from transformer2.experts.folder import Expert, read_expert, save_expert, seal_adapter, stamp_expert
from transformer2.experts.mix import load_experts, mix_experts, mix_folders, shuffle_expert, shuffle_folder
from transformer2.experts.reference import import_reference_checkpoint
from transformer2.svf.adapter_folder import read_adapter, read_config, read_trained_on

__all__ = [
    "Comparison",
    "Expert",
    "compare_experts",
    "import_reference_checkpoint",
    "load_experts",
    "mix_experts",
    "mix_folders",
    "read_adapter",
    "read_config",
    "read_expert",
    "read_trained_on",
    "save_expert",
    "seal_adapter",
    "show_expert",
    "shuffle_expert",
    "shuffle_folder",
    "stamp_expert",
]
