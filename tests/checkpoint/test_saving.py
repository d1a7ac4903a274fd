"""Saving under fire: beside the training, on a disk that is full, and to a Hub that does not answer."""

import json
import resource
import subprocess
import threading
from pathlib import Path

import pytest
import torch
from httpx import Request, Response
from huggingface_hub.errors import RemoteEntryNotFoundError
from lerobot.common import train_utils
from safetensors.torch import load_file
from tiny import batches, make_algorithm, write_config

from lerobot_policy_pi05_rl import cli
from lerobot_policy_pi05_rl.cards.text import sealed
from lerobot_policy_pi05_rl.checkpoint import hub as hub_card
from lerobot_policy_pi05_rl.checkpoint import saver as saving
from lerobot_policy_pi05_rl.checkpoint import write as checkpointing
from lerobot_policy_pi05_rl.checkpoint.hub import show_card
from lerobot_policy_pi05_rl.checkpoint.saver import CheckpointSaver, SaveError
from lerobot_policy_pi05_rl.checkpoint.snapshot import collect
from lerobot_policy_pi05_rl.checkpoint.write import remove_leftovers
from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.config.train import ConfigError
from lerobot_policy_pi05_rl.offline_learner import train_offline
from lerobot_policy_pi05_rl.runtime.files import damages

OF_THIS_RUN = {"train_config.json", "manifest.json"}
OPTIMIZER = "training_state/optimizer_state.safetensors"
JOINT = {"policy__offline_steps": 6, "save_freq": 2, "policy__advantage_labels": "running"}
SAVES = {"save_freq": 2, "policy__advantage_labels": "running"}  # no checkpoint between the phases


pytestmark = pytest.mark.usefixtures("logging_as_before")


def run(path, **overrides) -> Path:
    return train_offline(load_config(path, [f"--{k}={v}" for k, v in overrides.items()]))


def contents(root: Path) -> dict[str, bytes]:
    files = [path for path in root.rglob("*") if path.is_file() and path.name not in OF_THIS_RUN]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


class NoProcessor:
    """Stands for a pre- or postprocessor; has nothing to save."""

    def save_pretrained(self, folder: Path) -> None:
        pass


@pytest.fixture
def saver(tmp_path, mixed_dataset):
    """Makes a saver of a run in ``tmp_path/run``."""

    def make(**changes) -> CheckpointSaver:
        path = write_config(tmp_path / "c.json", mixed_dataset, tmp_path / "run", policy__offline_steps=10, **changes)
        cfg = load_config(path)
        return CheckpointSaver(
            cfg.run_dir,
            cfg.total_steps,
            in_background=cfg.save_in_background,
            keep_last=cfg.keep_last_checkpoints,
            config=cfg,
            processors=(NoProcessor(), NoProcessor()),
            data_state={},
        )

    return make


def test_checkpoints_written_in_the_background_are_the_same_bytes(tmp_path, mixed_dataset):
    options = {"policy__offline_steps": 6, **SAVES, "policy__critic_target": "td", "policy__n_step": 2}
    run(write_config(tmp_path / "a.json", mixed_dataset, tmp_path / "a", **options))
    run(write_config(tmp_path / "b.json", mixed_dataset, tmp_path / "b", save_in_background=True, **options))
    first, second = contents(tmp_path / "a" / "checkpoints"), contents(tmp_path / "b" / "checkpoints")
    assert len(first) > 40 and first == second
    assert names(tmp_path / "b") == ["000002", "000004", "000006", "last"]


@pytest.mark.parametrize("frozen", [False, True])
def test_a_copied_snapshot_does_not_follow_the_training(frozen):
    algorithm = make_algorithm(critic_early_stop=2, freeze_vision_encoder=frozen)
    stream = batches()
    algorithm.update(stream)
    snapshot, live = collect(algorithm, {"sums": {}}, copied=True), collect(algorithm, {}, copied=False)
    before = {name: tensor.clone() for name, tensor in algorithm.policy.state_dict().items()}
    moments = {key: entry["exp_avg"].clone() for key, entry in algorithm.optimizer.state_dict()["state"].items()}
    recap = {name: tensor.clone() for name, tensor in algorithm.state_dict().items()}
    rate = snapshot.optimizer["param_groups"][0]["lr"]
    algorithm.update(stream)
    assert snapshot.model.keys() == before.keys()
    assert all(torch.equal(snapshot.model[name], before[name]) for name in before)
    assert any(not torch.equal(live.model[name], before[name]) for name in before)
    assert all(torch.equal(snapshot.optimizer["state"][key]["exp_avg"], moments[key]) for key in moments)
    assert all(torch.equal(snapshot.recap[name].nan_to_num(), recap[name].nan_to_num()) for name in recap)
    assert (snapshot.step, snapshot.scheduler["last_epoch"]) == (1, 1)
    assert snapshot.optimizer["param_groups"][0]["lr"] == rate != algorithm.optimizer.param_groups[0]["lr"]
    shared = {n for n, p in algorithm.policy.named_parameters() if p.data_ptr() == snapshot.model[n].data_ptr()}
    assert shared == {name for name, p in algorithm.policy.named_parameters() if not p.requires_grad}
    assert any("vision_tower" in name for name in shared) == frozen


def test_a_second_save_waits_for_the_first_and_the_end_for_both(tmp_path, saver, monkeypatch):
    gate, written, real = threading.Event(), [], saving.write_files

    def slow(snapshot, *args, **kwargs):
        gate.wait(30)
        written.append(snapshot.step)
        return real(snapshot, *args, **kwargs)

    monkeypatch.setattr(saving, "write_files", slow)
    algorithm = make_algorithm()
    stream = batches()
    with saver(save_in_background=True) as running:
        algorithm.update(stream)
        running.save(algorithm, {})
        algorithm.update(stream)  # training goes on
        running.check()
        assert written == []
        threading.Timer(0.2, gate.set).start()
        running.save(algorithm, {})
        assert written[0] == 1
    assert written == [1, 2] and names(tmp_path / "run") == ["000001", "000002", "last"]


def test_training_waits_for_the_files_and_not_for_their_reading_back(tmp_path, saver, monkeypatch):
    gate, finished, real = threading.Event(), [], saving.finish_checkpoint

    def slow(final):
        gate.wait(30)
        finished.append(final.name)
        real(final)

    monkeypatch.setattr(saving, "finish_checkpoint", slow)
    algorithm, stream = make_algorithm(), batches()
    with saver() as running:
        algorithm.update(stream)
        weights = {name: tensor.clone() for name, tensor in algorithm.policy.state_dict().items()}
        path = running.save(algorithm, {})
        algorithm.update(stream)  # what is live changes
        running.check()
        assert finished == [] and not path.exists()
        threading.Timer(0.2, gate.set).start()
        running.save(algorithm, {})
        assert finished[0] == "000001"
    assert names(tmp_path / "run") == ["000001", "000002", "last"]
    stored = load_file(path / "pretrained_model" / "model.safetensors")
    assert all(torch.equal(stored[name], weights[name]) for name in stored)


def test_an_error_while_reading_back_is_raised_at_the_next_step(saver, monkeypatch):
    def broken(final):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(saving, "finish_checkpoint", broken)
    with pytest.raises(SaveError, match="Input/output error"), saver() as running:
        running.save(make_algorithm(), {})
        for _ in range(1000):
            threading.Event().wait(0.01)
            running.check()
        pytest.fail("the run went on")


def test_an_error_in_the_background_is_raised_at_the_next_step_or_at_the_end(tmp_path, saver, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving, "write_files", full)
    algorithm = make_algorithm()
    with pytest.raises(SaveError, match="No space left"), saver(save_in_background=True) as running:
        running.save(algorithm, {})
        for _ in range(1000):
            threading.Event().wait(0.01)
            running.check()
    with pytest.raises(SaveError, match="No space left"), saver(save_in_background=True) as running:
        running.save(algorithm, {})


def test_another_error_does_not_hide_that_of_the_background(saver, monkeypatch, caplog):
    monkeypatch.setattr(saving, "write_files", lambda *a, **k: (_ for _ in ()).throw(OSError(5, "I/O error")))
    with pytest.raises(ZeroDivisionError), saver(save_in_background=True) as running:
        running.save(make_algorithm(), {})
        raise ZeroDivisionError
    assert "I/O error" in caplog.text


# ── A full disk ──────────────────────────────────────────────────────────────────────────────────────────────────


def whole_and_alone(run_dir: Path, step: str) -> None:
    assert names(run_dir) == [step, "last"]
    assert damages(run_dir / "checkpoints" / "last") == []
    assert (run_dir / "checkpoints" / "last").resolve().name == step


def refused(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["offline", *map(str, arguments)])
    assert exit_.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pi05-rl: error: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize("background", [False, True])
def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path, mixed_dataset, capsys, background):
    config = write_config(tmp_path / "c.json", mixed_dataset, tmp_path / "run", save_in_background=background, **SAVES)
    run(config, **{"policy.offline_steps": 2})
    before = contents(tmp_path / "run" / "checkpoints")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))  # no file may grow beyond it
    try:
        line = refused(capsys, config, "--resume=true")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    whole_and_alone(tmp_path / "run", "000002")
    assert contents(tmp_path / "run" / "checkpoints") == before
    path = tmp_path / "run" / "checkpoints" / "000004"
    for part in (f"{path} cannot be written", "File too large", "000002 is whole", "--resume=true", "are free there"):
        assert part in line
    assert run(config, resume="true").name == "000004"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a few megabytes; mounting takes root."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not permitted")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_stops_the_run_and_names_what_is_free(tmp_path, mixed_dataset, capsys, small_disk):
    run_dir = small_disk / "run"
    config = write_config(tmp_path / "c.json", mixed_dataset, run_dir, **JOINT)
    line = refused(capsys, config)
    assert "No space left on device" in line and "MB, and" in line and "keep_last_checkpoints" in line
    whole_and_alone(run_dir, "000002")
    assert json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 4


def test_what_does_not_read_back_is_no_checkpoint(tmp_path, saver, monkeypatch):
    def torn(path: Path, **kwargs) -> None:
        if (path / OPTIMIZER).exists():
            (path / OPTIMIZER).write_bytes((path / OPTIMIZER).read_bytes()[:-1])

    monkeypatch.setattr(checkpointing, "flush", torn)
    algorithm = make_algorithm()
    algorithm.update(batches())
    with pytest.raises(SaveError, match=r"does not give back.*optimizer_state.safetensors"), saver() as running:
        running.save(algorithm, {})
    assert names(tmp_path / "run") == []


def test_what_a_killed_run_left_half_done_is_removed_and_nothing_else(tmp_path):
    folder = tmp_path / "checkpoints"
    for name in (".000004.partial", ".000002.gone", "000003", ".notes"):
        (folder / name).mkdir(parents=True)
    (folder / "last").symlink_to("000003")
    (folder / ".last.partial").symlink_to("000004")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [".notes", "000003", "last"]
    remove_leftovers(tmp_path / "none")


# ── The Hub ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def hub(monkeypatch):
    """A Hub that notes what it is sent, or fails."""

    class Api:
        uploads: list = []  # noqa: RUF012
        fails = False
        card: Path | None = None  # at the top of the repository

        def create_repo(self, **kwargs):
            if Api.fails:
                raise ConnectionError("no route to host")

        def upload_folder(self, *, folder_path, path_in_repo, repo_id, **kwargs):
            folder = Path(folder_path)
            assert damages(folder) == [] and (folder.parent / "last").resolve() == folder.resolve()
            Api.uploads.append((repo_id, path_in_repo))
            return type("Commit", (), {"oid": "abc"})()

        def create_tag(self, *, tag, **kwargs):
            Api.uploads.append(tag)

        def hf_hub_download(self, *, filename, **kwargs):
            if Api.card is None:
                request = Request("GET", f"https://huggingface.co/{filename}")
                raise RemoteEntryNotFoundError(filename, response=Response(404, request=request))
            return str(Api.card)

        def upload_file(self, *, path_or_fileobj, path_in_repo, repo_id, **kwargs):
            Api.card = path_or_fileobj
            Api.uploads.append((repo_id, path_in_repo))

    Api.uploads = []
    monkeypatch.setattr(train_utils, "HfApi", Api)
    monkeypatch.setattr(hub_card, "HfApi", Api)
    return Api


def test_each_checkpoint_goes_to_the_hub_once_it_is_whole(tmp_path, mixed_dataset, hub):
    options = {"save_checkpoint_to_hub": True, "policy__repo_id": "you/pick", **SAVES}
    run(write_config(tmp_path / "c.json", mixed_dataset, tmp_path / "run", **options))
    sent = [[("you/pick", f"checkpoints/{step}"), step, ("you/pick", "README.md")] for step in ("000002", "000004")]
    assert hub.uploads == sent[0] + sent[1]
    card = hub.card.read_text()
    assert hub.card == tmp_path / "run/checkpoints/000004/pretrained_model/README.md"
    assert "hf download you/pick --include 'checkpoints/000004/pretrained_model/*' --local-dir pick" in card
    assert "lerobot-eval --policy.path=pick/checkpoints/000004/pretrained_model " in card


@pytest.mark.parametrize("edited", [True, False])
def test_a_card_that_somebody_wrote_stays_on_the_hub(tmp_path, hub, edited):
    checkpoint = tmp_path / "000002"
    card, there = checkpoint / "pretrained_model" / "README.md", tmp_path / "README.md"
    card.parent.mkdir(parents=True)
    card.write_text(sealed("new"))
    there.write_text(sealed("old") + ("Ten of ten on my robot.\n" if edited else ""))
    hub.card = there
    show_card(checkpoint, "you/pick")
    assert hub.card == (there if edited else card) and len(hub.uploads) == (not edited)


def test_a_checkpoint_without_a_card_leaves_the_hubs_alone(tmp_path, hub):
    (tmp_path / "000002" / "pretrained_model").mkdir(parents=True)
    show_card(tmp_path / "000002", "you/pick")
    assert hub.uploads == []


def test_a_card_that_the_hub_does_not_take_is_one_warning(tmp_path, mixed_dataset, hub, monkeypatch, caplog):
    def broken(self, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(hub, "upload_file", broken)
    options = {"save_checkpoint_to_hub": True, "policy__repo_id": "you/pick"}
    checkpoint = run(write_config(tmp_path / "c.json", mixed_dataset, tmp_path / "run", **options))
    assert checkpoint.name == "000004" and len(hub.uploads) == 2 * len(names(tmp_path / "run")[:-1])
    said = {r.getMessage() for r in caplog.records if r.name == hub_card.__name__}
    assert said == {"The card of you/pick was not updated (ConnectionError: no route to host); the run goes on"}


def test_a_hub_that_does_not_answer_is_one_warning_a_checkpoint(tmp_path, mixed_dataset, hub, caplog):
    hub.fails = True
    options = {"save_checkpoint_to_hub": True, "policy__repo_id": "you/pick", **SAVES}
    checkpoint = run(write_config(tmp_path / "c.json", mixed_dataset, tmp_path / "run", **options))
    assert checkpoint.name == "000004" and names(tmp_path / "run") == ["000002", "000004", "last"]
    warnings = [r.getMessage() for r in caplog.records if r.name == saving.__name__ and r.levelname == "WARNING"]
    assert len(warnings) == 2 and all("no route to host" in w and "the run goes on" in w for w in warnings)


def test_uploading_needs_a_repository(tmp_path, mixed_dataset):
    path = write_config(tmp_path / "c.json", mixed_dataset, tmp_path / "run", save_checkpoint_to_hub=True)
    with pytest.raises(ConfigError, match=r"policy\.repo_id"):
        load_config(path).validate()
