"""What guidance costs at inference: FLOPs at full π0.5 size on the meta device, seconds at a middle size.

    python benchmarks/guidance.py [--cameras 2] [--text 64] [--repeats 5]

Guided sampling reads the prefix's key-value cache twice, in one pass of the action expert per denoising step.
"""

import argparse
import time

import torch
from lerobot.configs import FeatureType, PolicyFeature
from torch.utils.flop_counter import FlopCounterMode

from lerobot_policy_pi05_rl.configuration_pi05_rl import PI05RLConfig
from lerobot_policy_pi05_rl.model.network import PI05RLPytorch

# Between the demo's and the full size, with the full size's proportions: about a tenth of the width of each tower.
MIDDLE = {
    "llm_width": 512,
    "llm_mlp_dim": 4096,
    "expert_width": 256,
    "expert_mlp_dim": 1024,
    "head_dim": 64,
    "vision_width": 288,
    "vision_mlp_dim": 1076,
    "vision_depth": 9,
    "vision_heads": 4,
    "llm_depth": 9,
    "critic_llm_depth": 1,
    "vocab_size": 4096,
}


def inputs(config: PI05RLConfig, cameras: int, text: int) -> dict:
    """What ``sample_actions`` reads, batch 1."""
    size = config.image_resolution[0]
    return {
        "images": [torch.zeros(1, 3, size, size) for _ in range(cameras)],
        "img_masks": [torch.ones(1, dtype=torch.bool) for _ in range(cameras)],
        "tokens": torch.ones(1, text, dtype=torch.long),
        "masks": torch.ones(1, text, dtype=torch.bool),
        "tags": torch.ones(1, dtype=torch.long),
        "noise": torch.zeros(1, config.chunk_size, config.max_action_dim),
    }


def config(**sizes) -> PI05RLConfig:
    """A configuration of the given sizes."""
    features = {"observation.state": PolicyFeature(FeatureType.STATE, (6,))}
    return PI05RLConfig(device="cpu", input_features=features, **sizes)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cameras", type=int, default=2)
    parser.add_argument("--text", type=int, default=64, help="prompt tokens")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    counts = {}
    with torch.device("meta"):
        model = PI05RLPytorch(config(), with_critic=False)
        batch = inputs(config(), args.cameras, args.text)
        for scale in (1.0, 2.0):
            with FlopCounterMode(display=False) as counter:
                model.sample_actions(**batch, guidance_scale=scale)
            counts[scale] = counter.get_total_flops()
    print(
        f"full size, {args.cameras} cameras, {args.text} prompt tokens, {config().num_inference_steps} denoising steps"
    )
    print(f"  plain  (β = 1): {counts[1.0] / 1e12:.3f} TFLOP a chunk")
    print(f"  guided (β ≠ 1): {counts[2.0] / 1e12:.3f} TFLOP a chunk, {counts[2.0] / counts[1.0]:.3f} times")

    middle = config(**MIDDLE)
    model, batch = PI05RLPytorch(middle, with_critic=False).eval(), inputs(middle, args.cameras, args.text)
    seconds: dict[float, list[float]] = {1.0: [], 2.0: []}
    model.sample_actions(**batch)  # allocations
    for _ in range(args.repeats):
        for scale, runs in seconds.items():  # alternating, so that a slow moment meets both
            start = time.perf_counter()
            model.sample_actions(**batch, guidance_scale=scale)
            runs.append(time.perf_counter() - start)
    ratios = sorted(guided / plain for plain, guided in zip(*seconds.values(), strict=True))
    size = sum(parameter.numel() for parameter in model.parameters())
    print(f"middle size ({size / 1e6:.0f} M parameters), batch 1, {torch.get_num_threads()} thread(s), CPU")
    print(f"  plain {min(seconds[1.0]) * 1e3:.0f} ms, guided {min(seconds[2.0]) * 1e3:.0f} ms a chunk (best of each)")
    median, spread = ratios[len(ratios) // 2], f"{ratios[0]:.3f} to {ratios[-1]:.3f}"
    print(f"  ratio, {args.repeats} alternating pairs: median {median:.3f}, {spread}")


if __name__ == "__main__":
    main()
