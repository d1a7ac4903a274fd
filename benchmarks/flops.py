"""FLOPs of one training step at full π0.5 size, counted on the meta device: ours, stock's, a straightforward one.

    python benchmarks/flops.py [--cameras 2] [--batch 1] [--text 64] [--all] [--json] [--write-docs]

Needs no GPU and no weights. Everything trains. ``--all`` adds the ratios for one to three cameras, and shows on
batches of 1 to 32 that FLOPs per sample do not depend on the batch. The straightforward learner is one as people write
it: for critic, target, advantage and actor it embeds this state and the next one anew (:class:`Reference`).
"""

import argparse
import json
from collections.abc import Callable
from functools import cache

import torch
from docs_section import write_section
from lerobot.policies.common.vla_utils import make_att_2d_masks, prepare_attention_masks_4d
from lerobot.policies.pi05.configuration_pi05 import PI05Config
from lerobot.policies.pi05.modeling_pi05 import PI05Pytorch
from minimum_flops import minimum_flops
from torch import Tensor, nn

from lerobot_policy_pi05_rl.configuration_pi05_rl import PI05RLConfig
from lerobot_policy_pi05_rl.model.critic import ValueCritic
from lerobot_policy_pi05_rl.plan.flops import Flops, flops_by_part, total, training_step_flops
from lerobot_policy_pi05_rl.plan.meta_step import Shape, build, run_backward, with_cameras

STOCK_TEXT = 200  # stock pads every prompt to tokenizer_max_length
BC = "cloning, ours"
POOLED = "RL, six critic layers, pooled image tokens (default)"
SEPARATE = "RL, six critic layers"
SHARED = "RL, shared critic"
STOCK = "cloning, stock, text to 200"
REFERENCE = "RL, straightforward"
OURS = {
    BC: {"policy_extraction": "none"},
    SHARED: {"use_separate_critic": False},
    POOLED: {},
    SEPARATE: {"critic_image_pooling": 1},
}
RL = [SHARED, POOLED, SEPARATE]
GOALS = [  # a step, what it is compared with, how many times as much it may cost
    (SEPARATE, BC, 1.3),
    (POOLED, BC, 1.1),  # the cheapest that keeps the labels' quality; the shared one does not (docs/results.md)
    *((name, STOCK, 1.1) for name in RL),
    *((name, REFERENCE, 0.7) for name in RL),
]


class Reference(nn.Module):
    """RECAP's losses without sharing anything: stock's actor, a critic of six language layers and its target.

    The critic's loss is the cross-entropy with the target's value of the next state; the advantage asks the critic
    about both states once more; the actor clones. Each of the five embeds its own state: with two cameras ten passes
    of the vision tower and five of a language model, and there are two backwards. Critics are LeRobot's language
    tower as it is, over the prefix and the value queries at once.
    """

    def __init__(self, config: PI05RLConfig):
        super().__init__()
        self.losses = build(config).losses

    def step(self, cameras: int, batch: int, text: int, begin_backward: Callable[[], None]) -> None:
        """One step on states and next states of the given shape."""
        model = self.losses.policy.model
        critic, target = model.critic, self.losses.target_critic
        observation = make_observation(model.config, cameras, batch, text)

        def value(of: nn.Module) -> Tensor:
            with torch.no_grad():
                features, mask, _ = model.embed_prefix(*observation)
            return joint_logits(of.members[0], features, mask)

        with torch.no_grad():
            targets = value(target).softmax(dim=-1)
        critic_loss = -(targets * value(critic).log_softmax(dim=-1)).mean()
        with torch.no_grad():
            for _ in ("the state", "the next state"):
                value(critic)
        actor_loss = stock_loss(model, make_observation(model.config, cameras, batch, text))
        begin_backward()
        run_backward(critic_loss)
        run_backward(actor_loss)


def joint_logits(critic: ValueCritic, features: Tensor, mask: Tensor) -> Tensor:
    """(B, bins) of one pass of LeRobot's tower over the prefix (B, P, width) and the value queries behind it."""
    queries = critic.queries.expand(len(mask), -1, -1)
    both = torch.cat([mask, mask.new_ones(len(mask), queries.shape[1])], dim=1)
    block = torch.zeros_like(both)
    block[:, mask.shape[1]] = True
    hidden = critic.backbone(
        inputs_embeds=torch.cat([features, queries], dim=1),
        attention_mask=prepare_attention_masks_4d(make_att_2d_masks(both, block)),
        position_ids=torch.cumsum(both, dim=1) - 1,
        use_cache=False,
    ).last_hidden_state
    return critic.head(hidden[:, mask.shape[1] :].flatten(1))


def make_observation(config: PI05Config, cameras: int, batch: int, text: int) -> tuple:
    """Images, their masks, tokens and their mask, as π0.5's networks take them."""
    with torch.device("meta"):
        return (
            [torch.empty(batch, 3, *config.image_resolution) for _ in range(cameras)],
            [torch.empty(batch, dtype=torch.bool) for _ in range(cameras)],
            torch.empty(batch, text, dtype=torch.long),
            torch.empty(batch, text, dtype=torch.bool),
        )


def stock_loss(model: PI05Pytorch, observation: tuple) -> Tensor:
    """Stock's training forward, whatever class ``model`` is of."""
    batch = len(observation[2])
    with torch.device("meta"):
        actions = torch.empty(batch, model.config.chunk_size, model.config.max_action_dim)
        return PI05Pytorch.forward(model, *observation, actions, actions, torch.empty(batch)).mean()


@cache
def stock_flops(cameras: int, batch: int, text: int) -> Flops:
    """One step of stock's π0.5."""
    with torch.device("meta"):
        model = PI05Pytorch(PI05Config(device="cpu")).train()

    def step(begin_backward: Callable[[], None]) -> None:
        loss = stock_loss(model, make_observation(model.config, cameras, batch, text))
        begin_backward()
        run_backward(loss)

    return flops_by_part(model, step)


def our_flops(cameras: int, batch: int, text: int, **values) -> Flops:
    """One step of the package's own losses."""
    config = with_cameras(PI05RLConfig(device="cpu", **values), cameras)
    return training_step_flops(build(config), Shape(batch, text))


def reference_flops(cameras: int, batch: int, text: int) -> Flops:
    """One step of :class:`Reference`."""
    config = with_cameras(PI05RLConfig(device="cpu", critic_image_pooling=1, critic_target="td"), cameras)
    reference = Reference(config)
    return flops_by_part(reference, lambda begin: reference.step(cameras, batch, text, begin))


def least(name: str, cameras: int, batch: int, text: int) -> int:
    """The minimum of one of our steps (minimum_flops.py)."""
    return batch * minimum_flops(with_cameras(PI05RLConfig(device="cpu", **OURS[name]), cameras), cameras, text)


def count(cameras: int, batch: int, text: int) -> dict[str, Flops]:
    """Step → its FLOPs by part."""
    steps = {name: our_flops(cameras, batch, text, **values) for name, values in OURS.items()}
    return {
        **steps,
        STOCK: stock_flops(cameras, batch, STOCK_TEXT),
        REFERENCE: reference_flops(cameras, batch, text),
    }


def ratios(flops: dict[str, Flops], cameras: int, batch: int, text: int) -> dict[str, dict[str, float]]:
    """Our RL step → the four ratios of the issue's JSON."""
    sums = {name: total(parts) for name, parts in flops.items()}
    return {
        name: {
            "rl_over_bc": sums[name] / sums[BC],
            "rl_over_stock_bc": sums[name] / sums[STOCK],
            "rl_over_reference": sums[name] / sums[REFERENCE],
            "rl_over_minimum": sums[name] / least(name, cameras, batch, text),
        }
        for name in RL
    }


def table_by_part(flops: dict[str, Flops], batch: int) -> str:
    """Markdown: TFLOP per sample of every step by part, forward + backward."""
    parts = list(dict.fromkeys(part for counted in flops.values() for part in counted))
    lines = [f"| TFLOP per sample | {' | '.join(flops)} |", f"| --- |{' ---: |' * len(flops)}"]
    for part in parts:
        cells = (counted.get(part) for counted in flops.values())
        lines.append(f"| {part} | {' | '.join(_both(cell, batch) for cell in cells)} |")
    sums = (f"**{total(counted) / batch / 1e12:.3f}**" for counted in flops.values())
    return "\n".join([*lines, f"| all | {' | '.join(sums)} |"])


def _both(phases: dict[str, int] | None, batch: int) -> str:
    if phases is None:
        return "-"
    return " + ".join(f"{phases[phase] / batch / 1e12:.3f}" for phase in ("forward", "backward"))


def table_of_ratios(results: dict[str, dict[str, float]]) -> str:
    """Markdown: our RL steps against the others."""
    heads = ["ours, cloning", "stock, cloning", "straightforward", "minimum"]
    lines = [f"| step, times as much as | {' | '.join(heads)} |", "| --- | ---: | ---: | ---: | ---: |"]
    lines += [f"| {name} | {' | '.join(f'{ratio:.3f}' for ratio in row.values())} |" for name, row in results.items()]
    return "\n".join(lines)


def goals_missed(flops: dict[str, Flops], cameras: int, batch: int, text: int) -> list[str]:
    """One line for every goal that is missed: what the step adds most beside cloning, and what of it nobody needs."""
    lines, cloning = [], flops[BC]
    for name, other, most in GOALS:
        counted, compared = flops[name], total(flops[other])
        if total(counted) <= most * compared:
            continue
        added = {
            part: total({part: phases}) - total({part: cloning.get(part, {})}) for part, phases in counted.items()
        }
        part, needed = max(added, key=added.get), least(name, cameras, batch, text)
        lines.append(
            f"Missed: {name}: {total(counted) / compared:.3f} of {other}, goal {most}. What it adds to cloning "
            f"is mostly {part}, {added[part] / total(counted):.1%} of the step. "
            f"{1 - needed / total(counted):.1%} of the step is above the minimum, which would be "
            f"{needed / compared:.3f}."
        )
    return lines


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cameras", type=int, default=2)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--text", type=int, default=64, help="prompt tokens")
    parser.add_argument("--all", action="store_true", help="one to three cameras; batches of 1 to 32")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write-docs", action="store_true", help="put the tables into docs/performance.md")
    args = parser.parse_args()
    flops = count(args.cameras, args.batch, args.text)
    compared = ratios(flops, args.cameras, args.batch, args.text)
    missed = goals_missed(flops, args.cameras, args.batch, args.text)
    per_camera = {n: ratios(count(n, args.batch, args.text), n, args.batch, args.text) for n in (1, 2, 3) if args.all}
    per_sample = {n: total(our_flops(args.cameras, n, args.text)) / n for n in (1, 4, 32) if args.all}
    if args.json:
        steps = {name: {"parts": parts, "all": total(parts)} for name, parts in flops.items()}
        result = {**compared[POOLED], "ratios": compared, "steps": steps, "missed": missed}
        print(json.dumps({**result, "ratios_by_cameras": per_camera, "per_sample_by_batch": per_sample}, indent=2))
        return
    text = [
        f"{args.cameras} cameras, {args.text} prompt tokens, everything trains; forward + backward.",
        table_by_part(flops, args.batch),
        table_of_ratios(compared),
        *(f"{n} camera(s):\n\n{table_of_ratios(results)}" for n, results in per_camera.items() if n != args.cameras),
    ]
    if per_sample:
        samples = ", ".join(f"{value / 1e12:.4f} in a batch of {size}" for size, value in per_sample.items())
        text.append(f"{POOLED}: TFLOP per sample {samples}.")
    text.append("\n\n".join(missed) or "Every goal is met.")
    body = "\n\n".join(text)
    print(body)
    if args.write_docs:
        options = " --all" if args.all else ""
        write_section("flops", f"python benchmarks/flops.py{options}", body)


if __name__ == "__main__":
    main()
