"""GPUs people train on: memory and peak speed without sparsity, as their vendor's data sheets give them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class GPU:
    """One kind of card."""

    name: str
    memory_gib: int
    bf16: float  # FLOP/s of dense bf16 products with fp32 accumulation
    fp32: float  # FLOP/s outside of the tensor cores: torch's default for fp32 products
    source: str


GPUS = (
    GPU("RTX 4090", 24, 165.2e12, 82.6e12, "NVIDIA Ada GPU architecture whitepaper, appendix A"),
    GPU("RTX A6000", 48, 154.8e12, 38.7e12, "NVIDIA RTX A6000 data sheet (309.7 with sparsity)"),
    GPU("L40S", 48, 362.0e12, 91.6e12, "NVIDIA L40S data sheet (733 with sparsity)"),
    GPU("A100 80GB", 80, 312.0e12, 19.5e12, "NVIDIA A100 data sheet"),
    GPU("H100 SXM", 80, 989.4e12, 66.9e12, "NVIDIA H100 data sheet (1,979 with sparsity)"),
    GPU("H200 SXM", 139, 989.4e12, 66.9e12, "NVIDIA H200 data sheet (1,979 with sparsity); 141 GB"),
)
CAPACITIES_GIB = (12, 16, 24, 48, 80, 139)
# Share of a card that tensors can fill; the rest is the CUDA context and what the allocator cannot use. An assumption.
USABLE = 0.92
# Full training of π0.5's size, samples/s of one H100, as published (the comparison of codebases of LingBot-VLA, arXiv
# 2601.18692): configurations differ, so these say the order of magnitude.
PUBLISHED = {"LeRobot": 12.6, "openpi": 18.5, "LingBot-VLA": 28.6}
# Share of the peak that a training step reaches over all. An assumption, near what openpi reaches there.
EFFICIENCY = 0.2
