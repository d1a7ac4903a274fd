"""Train on a dataset and evaluate the policy in its simulator: python examples/train_and_evaluate.py DATASET OUTPUT

DATASET is one that `pi05-rl demo` has recorded (outputs/demo/dataset). The policy of configs/demo.json is small and
starts from random weights; `config.policy.pi05_checkpoint` names π0.5 itself.
"""

import argparse

from lerobot_policy_pi05_rl import api
from lerobot_policy_pi05_rl.demo.evaluate import evaluate_closed_loop, summarize

parser = argparse.ArgumentParser()
parser.add_argument("dataset")
parser.add_argument("output")
parser.add_argument("--config", default="configs/demo.json", help="sizes and learning rates")
parser.add_argument("--steps", type=int, default=1500)
parser.add_argument("--episodes", type=int, default=50, help="of the evaluation")
args = parser.parse_args()

config = api.load_config(args.config)
config.dataset = api.DatasetConfig(repo_id="local/panda_pick_cube", root=args.dataset)
config.output_dir_offline = args.output
config.policy.offline_steps = args.steps
print(f"A step needs {api.plan(config).memory['peak'] / 2**30:.2f} GiB")

checkpoint = api.train_offline(config)
print(f"Wrote {checkpoint}")

result = evaluate_closed_loop(checkpoint / "pretrained_model", args.episodes, seed=10_000)
summary = summarize(result)
low, high = summary["success_rate_interval_95"]
print(f"Success rate: {summary['success_rate']:.2f} [{low:.2f}, {high:.2f}]")
