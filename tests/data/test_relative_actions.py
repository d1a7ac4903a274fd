"""``policy.use_relative_actions``: statistics of what is trained, excluded joints, and the way back."""

import numpy as np
import pytest
import torch
from lerobot.policies.factory import make_pre_post_processors
from lerobot.utils.constants import ACTION, OBS_STATE
from states import assert_statistics_of, record
from tiny import CAMERAS, tiny_config, write_config

from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.data.dataset import OfflineData, open_offline_data
from lerobot_policy_pi05_rl.data.normalisation import feature_statistics
from lerobot_policy_pi05_rl.data.sources import DatasetError
from lerobot_policy_pi05_rl.data.statistics import row_statistics
from lerobot_policy_pi05_rl.modeling_pi05_rl import PI05RLPolicy
from lerobot_policy_pi05_rl.processor_pi05_rl import build_tasks_tokenizer, make_pi05_rl_pre_post_processors

CHUNK = 6
LENGTHS = (4, 15, 9, 1)
TASK = "pick the cube"


def following(length: int, seed: int, state: int = 4) -> np.ndarray:
    """(T, state + 3): a state far from zero that wanders, and actions a little ahead of it."""
    rng = np.random.default_rng(seed)
    states = 100 * (1 + np.arange(state)) + np.cumsum(rng.normal(size=(length, state)), axis=0)
    return np.concatenate([states, states[:, :3] + rng.normal(scale=0.1, size=(length, 3))], axis=1)


EPISODES = [following(length, seed) for seed, length in enumerate(LENGTHS)]


def chunks_of(episodes: list[np.ndarray], relative: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """(N, 3) every trained step of every chunk, one by one."""
    found = []
    for rows in (episode.astype(np.float32).astype(np.float64) for episode in episodes):
        for t in range(len(rows)):
            found += [rows[t + k, -3:] - relative * rows[t, :3] for k in steps if t + k < len(rows)]
    return np.array(found)


@pytest.fixture
def opened(tmp_path):
    """Opens datasets with relative actions and the given changes."""

    def open_(first, *others, **changes) -> OfflineData:
        changes = {"dataset__additional_offline_dataset_paths": [str(other) for other in others], **changes}
        changes["policy__use_relative_actions"] = True
        open_.cfg = load_config(write_config(tmp_path / "run.json", first, tmp_path / "run", **changes))
        open_.cfg.validate()
        return open_offline_data(open_.cfg)

    return open_


def test_statistics_are_those_of_the_chunks_as_they_are_trained(tmp_path, opened):
    data = opened(record(tmp_path / "one", EPISODES))
    assert_statistics_of(data.stats[ACTION], chunks_of(EPISODES, np.ones(3), np.arange(CHUNK)))
    processors = make_pi05_rl_pre_post_processors(data.policy, data.stats, tokenizer=build_tasks_tokenizer([TASK]))
    normalised = []
    for number in range(len(data.train)):
        sample = data.train[(number, number)]
        batch = {key: value[None] if torch.is_tensor(value) else [value] for key, value in sample.items()}
        normalised.append(processors[0](batch)[ACTION][0][~sample["action_is_pad"]])
    inside = (torch.cat(normalised).abs() <= 1).double().mean()
    assert 0.95 < inside < 1.0  # 98 % of each dimension lie between its 1 % and its 99 % quantile


def test_several_datasets_and_frame_rates_are_pooled(tmp_path, opened):
    fast = [following(14, 8), following(21, 9)]
    roots = record(tmp_path / "one", EPISODES), record(tmp_path / "fast", fast, fps=20)
    data = opened(*roots, dataset__resample_actions=True)
    both = [chunks_of(EPISODES, np.ones(3), np.arange(CHUNK)), chunks_of(fast, np.ones(3), 2 * np.arange(CHUNK))]
    assert_statistics_of(data.stats[ACTION], np.concatenate(both))


def test_large_data_are_counted_without_being_held(tmp_path, opened, monkeypatch):
    data = opened(record(tmp_path / "one", EPISODES))
    policy, source = data.policy, data.sources[0]
    largest = []
    blocks = feature_statistics.__globals__["_relative_blocks"]

    def watched(*arguments):
        def each():
            for block in blocks(*arguments)():
                largest.append(len(block))
                yield block

        return each

    monkeypatch.setitem(feature_statistics.__globals__, "_relative_blocks", watched)
    feature_statistics(policy, ACTION, [(source, np.arange(sum(LENGTHS)))])
    assert max(largest) <= sum(LENGTHS)  # frames, never frames × chunk


@pytest.mark.parametrize(
    "names",
    [
        ["x", "y", "gripper.pos"],
        [["x", "y", "gripper.pos"]],
        {"motors": ["x", "y", "gripper.pos"]},
        {"arm": ["x", "y"], "gripper": ["width"]},
        {"gripper": 2, "x": 0, "y": 1},
        {"arm": 2, "gripper": 1},
    ],
)
def test_excluded_joints_stay_absolute_whatever_form_their_names_have(tmp_path, opened, names):
    data = opened(record(tmp_path / "one", EPISODES, names={ACTION: names}))
    relative = np.array([1, 1, 0])
    assert_statistics_of(data.stats[ACTION], chunks_of(EPISODES, relative, np.arange(CHUNK)))
    before, _ = make_pi05_rl_pre_post_processors(data.policy, data.stats, tokenizer=build_tasks_tokenizer([TASK]))
    states = torch.tensor(EPISODES[1][:1, :4])
    actions = torch.tensor(EPISODES[1][:1, None, 4:])
    read = before({OBS_STATE: states, ACTION: actions, CAMERAS[0]: torch.zeros(1, 3, 8, 8), "task": [TASK]})[ACTION]
    low, high = (torch.tensor(data.stats[ACTION][name]) for name in ("q01", "q99"))
    expected = 2 * (actions - torch.tensor(relative) * states[:, None, :3] - low) / (high - low) - 1
    torch.testing.assert_close(read, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("state", "names", "changes", "complaint"),
    [
        (2, {}, {}, r"actions of 3 dimensions and a state of 2; .*use_relative_actions=false"),
        (4, {ACTION: ["x", "y", "z"]}, {"relative_exclude_joints": ["hand"]}, r"names hand, .*called x, y, z"),
        (4, {}, {"relative_exclude_joints": ["hand"]}, r"names hand, .*no names \(policy\.action_feature_names\)"),
        (4, {}, {"action_feature_names": ["x", "y"]}, r"has 2 names, but the actions .* 3 dimensions"),
        (3, {ACTION: ["x", "y", "z"], OBS_STATE: ["z", "x", "y"]}, {}, r"dimension 0 .* is x, which is dimension 1"),
    ],
)
def test_what_cannot_be_relative_is_one_clear_error(tmp_path, opened, state, names, changes, complaint):
    root = record(tmp_path / "one", [following(9, 0, max(3, state))[:, -3 - state :]], names=names)
    with pytest.raises(DatasetError, match=complaint) as error:
        opened(root, **{f"policy__{key}": value for key, value in changes.items()})
    assert "\n" not in str(error.value)


def test_the_advice_works(tmp_path, opened):
    short = record(tmp_path / "short", [following(9, 0, 4)[:, 2:]])
    path = write_config(tmp_path / "off.json", short, tmp_path / "run", policy__use_relative_actions=False)
    assert len(open_offline_data(load_config(path)).train) == 9
    root = record(tmp_path / "unnamed", EPISODES)
    named = {"policy__action_feature_names": ["x", "y", "hand"], "policy__relative_exclude_joints": ["hand"]}
    assert_statistics_of(
        opened(root, **named).stats[ACTION], chunks_of(EPISODES, np.array([1, 1, 0]), np.arange(CHUNK))
    )


# ── The way back ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def relative_config():
    return tiny_config(
        use_relative_actions=True, action_feature_names=["x", "y", "gripper"], relative_exclude_joints=["gripper"]
    )


def make_stats() -> dict:
    rows = np.concatenate(EPISODES)
    return {
        OBS_STATE: row_statistics(rows[:, :4]),
        ACTION: row_statistics(chunks_of(EPISODES, np.array([1, 1, 0]), np.arange(CHUNK))),
    }


def observation(state: np.ndarray, action: np.ndarray | None = None) -> dict:
    found = {OBS_STATE: torch.tensor(state)[None], CAMERAS[0]: torch.zeros(1, 3, 8, 8), "task": [TASK]}
    return found if action is None else {**found, ACTION: torch.tensor(action)[None]}


@pytest.mark.parametrize("reloaded", [False, True])
def test_chunks_come_back_as_they_were(relative_config, tmp_path, reloaded):
    processors = make_pi05_rl_pre_post_processors(
        relative_config, make_stats(), tokenizer=build_tasks_tokenizer([TASK])
    )
    if reloaded:  # as stock lerobot-eval and lerobot-rollout load a checkpoint
        for processor in processors:
            processor.save_pretrained(tmp_path)
        processors = make_pre_post_processors(relative_config, pretrained_path=str(tmp_path))
    before, after = processors
    for t in range(5):
        chunk = EPISODES[1][t : t + CHUNK, 4:]
        back = after(before(observation(EPISODES[1][t, :4], chunk))[ACTION])
        torch.testing.assert_close(back[0], torch.tensor(chunk), rtol=1e-12, atol=1e-9)


def test_each_selected_action_is_executed_where_it_was_meant(relative_config, monkeypatch, caplog):
    """The postprocessor adds the newest state: an action of an earlier chunk would be off by how far it moved."""
    relative_config.n_action_steps = 3
    before, after = make_pi05_rl_pre_post_processors(
        relative_config, make_stats(), tokenizer=build_tasks_tokenizer([TASK])
    )
    policy = PI05RLPolicy(relative_config)
    now = 0

    def plan(self, batch, **kwargs):
        return before(observation(EPISODES[1][now, :4], EPISODES[1][now : now + CHUNK, 4:]))[ACTION]

    monkeypatch.setattr(PI05RLPolicy, "predict_action_chunk", plan)
    policy.reset()
    for now in range(7):
        action = after(policy.select_action(before(observation(EPISODES[1][now, :4]))))
        torch.testing.assert_close(action[0], torch.tensor(EPISODES[1][now, 4:]), rtol=1e-12, atol=1e-9)
    said = [record.getMessage() for record in caplog.records if "n_action_steps is 3" in record.getMessage()]
    assert len(said) == 1
