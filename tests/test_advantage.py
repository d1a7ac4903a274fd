"""Policy extractions by name: one's own is a class and nothing else; and the rule of ε, which is one."""

import json
import re
import runpy
import textwrap

import numpy as np
import pytest
import torch
from commands import REPOSITORY
from own_extraction import opened, own, success_and_failure
from recordings import make_dataset
from tiny import make_algorithm, make_batch, tiny_config, write_config

from lerobot_policy_pi05_rl import advantage
from lerobot_policy_pi05_rl.advantage import TAG_POSITIVE, PolicyExtraction, find_extraction
from lerobot_policy_pi05_rl.cli import main as cli
from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.config.train import ConfigError
from lerobot_policy_pi05_rl.data.batch import INTERVENTION, POSITION, PRECOMPUTED_ADVANTAGE, PRECOMPUTED_TAG
from lerobot_policy_pi05_rl.errors import UserError
from lerobot_policy_pi05_rl.labels.command import main as label
from lerobot_policy_pi05_rl.modeling_pi05_rl import PI05RLPolicy
from lerobot_policy_pi05_rl.noise import sample_noise
from lerobot_policy_pi05_rl.offline_learner import train_offline
from lerobot_policy_pi05_rl.report.build import main as report
from lerobot_policy_pi05_rl.returns import Outcome
from lerobot_policy_pi05_rl.thresholds import sets_the_threshold, task_thresholds

EXAMPLE = REPOSITORY / "examples" / "own_policy_extraction.py"
BUILT_IN = ("conditioning", "weighted", "filtered", "none")
pytestmark = pytest.mark.usefixtures("registry_as_before")


# ── By name ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_unknown_name_is_an_error_that_lists_the_known_ones(tmp_path, mixed_dataset, capsys, logging_as_before):
    path = write_config(tmp_path / "c.json", mixed_dataset, tmp_path / "run", policy__policy_extraction="awr")
    with pytest.raises(SystemExit) as stop:
        cli(["offline", str(path)])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2 and "policy.policy_extraction" in error and "'awr'" in error
    assert all(name in error for name in BUILT_IN)
    with pytest.raises(UserError, match="must be one of conditioning, weighted, filtered, none; got 'awr'"):
        find_extraction("awr")


def test_whatever_reads_an_unknown_name_says_how_ones_own_is_known(tmp_path, mixed_dataset):
    """A checkpoint of one's own extraction, read where its module is not imported."""
    own()
    changes = {"policy__policy_extraction": "mine", "policy__offline_steps": 1}
    written = write_config(tmp_path / "c.json", mixed_dataset, tmp_path / "run", **changes)
    checkpoint = train_offline(load_config(written)) / "pretrained_model"
    clones = write_config(tmp_path / "d.json", mixed_dataset, tmp_path / "other", policy__policy_extraction="none")
    del PolicyExtraction._known["mine"]
    asked = "--policy.policy_extraction=mine"
    ways = {
        "offline": lambda: load_config(clones, [asked]),
        "report": lambda: report([str(tmp_path / "run")]),
        "label": lambda: label([str(tmp_path / "run")]),
        "label --checkpoint": lambda: label([str(clones), "--checkpoint", str(checkpoint)]),
        "resume": lambda: load_config(checkpoint / "train_config.json", ["--resume=true"]),
        "checkpoint": lambda: PI05RLPolicy.from_pretrained(checkpoint),
        "class": lambda: find_extraction("mine"),
    }
    said = {}
    for name, way in ways.items():
        with pytest.raises(UserError) as caught:
            way()
        said[name] = str(caught.value)
    with pytest.raises(ValueError) as caught:
        tiny_config(policy_extraction="mine")
    said["code"] = str(caught.value)
    expected = (
        "must be one of conditioning, weighted, filtered, none; got 'mine'. One of your own is known once its module "
        "is imported (docs/extending.md)"
    )
    assert [name for name, text in said.items() if expected not in text or "\n" in text] == []
    with pytest.raises(ValueError, match=r"got 'x'$"):  # of other keys there are no more values
        tiny_config(filter_by="x")


def test_two_classes_cannot_have_one_name_but_a_module_may_run_again():
    def define():
        @PolicyExtraction.register("mine")
        class Mine(PolicyExtraction):
            pass

        return Mine

    assert define() is not define() and find_extraction("mine").__name__ == "Mine"
    with pytest.raises(ValueError, match=r"'mine' is .*Mine already"):
        PolicyExtraction.register("mine")(advantage.Weighted)


def test_a_method_under_its_earlier_name_is_an_error_that_says_the_present_one():
    class Before(PolicyExtraction):
        def draws(self, tags, advantages):
            return np.ones(len(tags))

    with pytest.raises(UserError, match=r"Before\.draws is never asked: it is called repetitions now"):
        PolicyExtraction.register("mine")(Before)
    with pytest.raises(UserError, match="never asked"):
        PolicyExtraction.register("mine")(type("Heir", (Before,), {}))
    assert "mine" not in advantage.extraction_names()
    assert all(hasattr(PolicyExtraction, now) for now in advantage.EARLIER_NAMES.values())


def test_no_other_file_knows_an_extraction_by_name():
    """``policy_extraction`` is compared with nothing; the names stand in advantage.py, and as the default's."""
    asked = re.compile(r"policy_extraction\"?\)?\s*(?:==|!=| in )|[=!]=\s*\"(?:conditioning|weighted|filtered)\"")
    found = {path.name for path in (REPOSITORY / "src").rglob("*.py") if asked.search(path.read_text())}
    assert found == set()
    assert asked.search('cfg.policy_extraction == "none"') and asked.search('if choice != "filtered":')


def test_a_plugin_brings_its_own(tmp_path, mixed_dataset, monkeypatch):
    """LeRobot finds the distribution by its name; ``pi05-rl`` looks where it does not know the name."""
    folder = tmp_path / "site"
    (folder / "lerobot_policy_halves").mkdir(parents=True)
    module = """
        from lerobot_policy_pi05_rl.advantage import PolicyExtraction


        @PolicyExtraction.register("halves")
        class Halves(PolicyExtraction):
            pass
    """
    (folder / "lerobot_policy_halves" / "__init__.py").write_text(textwrap.dedent(module))
    info = folder / "lerobot_policy_halves-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lerobot_policy_halves\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(folder))
    path = write_config(tmp_path / "c.json", mixed_dataset, tmp_path / "run", policy__policy_extraction="halves")
    assert type(load_config(path).policy.extraction).__name__ == "Halves"


# ── What a class of one's own decides ────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def recording(tmp_path):
    return success_and_failure(tmp_path / "data")


def test_it_says_which_episodes_and_how_often_frames_are_drawn(tmp_path, recording):
    own(repetitions=lambda self, tags, advantages: np.where(tags == TAG_POSITIVE, 3.0, advantages * 0 + 0.5))
    _, data = opened(tmp_path, recording, dataset__labeling="first")
    assert data.train.frames.repetitions.tolist() == [3.0] * 5 + [0.5] * 15
    for keeps in (lambda self, outcome: outcome is Outcome.FAILURE, lambda self, outcome: outcome != "success"):
        own(keeps=keeps)
        _, data = opened(tmp_path, recording)
        assert [episode.outcome for episode in data.train.frames.episodes] == [Outcome.FAILURE]


def test_nothing_left_to_draw_is_an_error(tmp_path, recording):
    own(keeps=lambda self, outcome: False, kept="a miracle")
    with pytest.raises(UserError, match="policy_extraction is mine, and no episode to train on is a miracle"):
        opened(tmp_path, recording)
    own(repetitions=lambda self, tags, advantages: np.zeros(len(tags)))
    with pytest.raises(UserError, match="policy_extraction is mine, and it draws no frame"):
        opened(tmp_path, recording, dataset__labeling="first")


def test_it_says_what_it_needs(tmp_path, recording, monkeypatch):
    own(needs_advantage=property(lambda self: False), needs_outcomes=False)
    monkeypatch.chdir(tmp_path)
    make_dataset(tmp_path / "bare", [{"length": 3}] * 2, columns=())
    cfg, _ = opened(tmp_path, tmp_path / "bare")
    assert not cfg.policy.trains_critic
    own(needs_labeling=True)
    cfg, _ = opened(tmp_path, recording)
    assert cfg.policy.trains_critic
    with pytest.raises(ConfigError, match=r"policy\.policy_extraction mine needs a labeling"):
        cfg.validate()


def test_it_says_which_tag_and_weight_each_sample_has_and_what_is_asked_for():
    weights = torch.arange(6.0)
    own(
        shows_tag=True,
        tags=lambda self, labels: torch.where(labels.corrected, -1, labels.tags),
        weights=lambda self, labels: weights * labels.precomputed,
    )
    algorithm = make_algorithm(policy_extraction="mine", inference_advantage="negative")
    corrected = torch.tensor([True, False, False, False, False, True])
    tags = torch.tensor([0, 0, 1, 1, -1, 0])
    batch = dict(
        make_batch(), **{INTERVENTION: corrected, PRECOMPUTED_TAG: tags, PRECOMPUTED_ADVANTAGE: torch.zeros(6)}
    )
    sampled = sample_noise(3, batch[POSITION], algorithm.policy.config)
    shown, counted, metrics = algorithm.losses.tag_and_weigh(batch[PRECOMPUTED_ADVANTAGE], batch, sampled)
    assert shown.tolist() == [-1, 0, 1, 1, -1, -1] and torch.equal(counted, weights)
    assert float(metrics["advantage_positive_fraction"]) == pytest.approx(4 / 6)  # as labelled, not as shown
    assert algorithm.policy.config.extraction.inference_tag() == 0
    for asked, tag in (("positive", 1), ("none", None)):
        algorithm.policy.config.inference_advantage = asked
        assert algorithm.policy.config.extraction.inference_tag() == tag


@pytest.mark.parametrize("name", ["weighted", "filtered", "none"])
def test_what_clones_asks_for_no_tag(name):
    assert tiny_config(policy_extraction=name, filter_by="advantage").extraction.inference_tag() is None


# ── The example ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_documents_example_is_the_file_and_short():
    text = EXAMPLE.read_text()
    assert f"```python\n{text}```" in (REPOSITORY / "docs" / "extending.md").read_text()
    assert len(text.splitlines()) <= 40


def test_the_example_trains_and_its_checkpoint_loads(tmp_path, mixed_dataset, monkeypatch, logging_as_before):
    changes = {"policy__offline_steps": 20, "policy__advantage_window": 8, "save_freq": 10}
    path = write_config(tmp_path / "c.json", mixed_dataset, tmp_path / "run", **changes)
    arguments = ["own_policy_extraction.py", str(path), "--policy.policy_extraction=soft_filtered"]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss_actor"] for line in lines if "loss_actor" in line]
    assert losses[0] == 0.0 and losses[-1] > 0.0  # weights are 0 until the task's spread is known
    checkpoint = tmp_path / "run" / "checkpoints" / "last" / "pretrained_model"
    policy = PI05RLPolicy.from_pretrained(checkpoint)
    assert policy.config.policy_extraction == "soft_filtered" and policy.model.critic is not None
    monkeypatch.setattr("sys.argv", [*arguments, "--resume=true", "--policy.offline_steps=21"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(EXAMPLE), run_name="__main__")


# ── ε ────────────────────────────────────────────────────────────────────────────────────────────────────────────

ADVANTAGES = np.array([0.1, 0.2, 0.3, 0.4, 9.0, 8.0, np.nan], dtype=np.float32)
CORRECTED = np.array([False, False, False, False, True, True, False])


def test_a_labelings_threshold_and_a_windows_are_taken_from_the_same_advantages():
    """Corrections and unknown advantages set neither; the threshold is between the second and the third of four."""
    table = {"advantage": ADVANTAGES, "intervention": CORRECTED, "task": np.full(7, "pick", dtype=object)}
    ours = task_thresholds([table], {"pick": 0.5})["pick"]
    algorithm = make_algorithm(advantage_positive_fraction=0.5, advantage_window=4)  # as many as count
    batch = dict(make_batch(size=7), **{INTERVENTION: torch.from_numpy(CORRECTED)})
    sampled = sample_noise(3, batch[POSITION], algorithm.policy.config)
    tags, _, metrics = algorithm.losses.tag_and_weigh(torch.from_numpy(ADVANTAGES), batch, sampled)
    window = algorithm.thresholds[torch.tensor([0])].item()
    for threshold in (ours, window):
        assert 0.2 <= threshold < 0.3
    assert algorithm.thresholds.state_dict()["advantage_counts"].tolist() == [4]
    assert sets_the_threshold(ADVANTAGES, CORRECTED).sum() == 4
    assert float(metrics["advantage_mean"]) == pytest.approx(18 / 6)  # of all known ones: what the batch holds
    dropped = sampled.dropped
    assert (tags[torch.from_numpy(CORRECTED) & ~dropped] == 1).all()
