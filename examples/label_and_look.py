"""Label a dataset with a run's critic and look at the labels: python examples/label_and_look.py RUN

RUN is the folder of a run of `pi05-rl offline`. The labels are a data frame with a row per frame of the dataset.
"""

import argparse

from lerobot_policy_pi05_rl import api

parser = argparse.ArgumentParser()
parser.add_argument("run")
parser.add_argument("--name", default="example", help="of the labeling")
args = parser.parse_args()

config = api.load_config(args.run)  # as the run was configured
labelled = api.label(config, name=args.name, horizon=0.15)
frames = labelled.frames()

print(frames.groupby("outcome")[["return", "value", "advantage"]].mean().round(3))
print("Threshold of each task:", labelled.thresholds)

# Where in an episode are the frames that the policy shall imitate?
progress = frames["frame_index"] / frames.groupby("episode_index")["frame_index"].transform("max").clip(lower=1)
print("Positive share by quarter of the episode:")
print(frames.groupby((progress * 4).clip(upper=3).astype(int))["positive"].mean().round(3).to_string())

print("Written:", *labelled.paths, api.report(args.run, labels=[labelled.name]))
