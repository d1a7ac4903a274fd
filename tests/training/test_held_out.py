"""Held-out metrics: by hand on columns, on the network, and whether they catch a critic that learned nothing."""

import logging

import numpy as np
import pytest
import torch
from double import assert_same
from recordings import make_dataset
from runs import metrics as logged
from runs import run, step_back
from safetensors.torch import load_file
from tiny import encode_prefix, make_algorithm, make_batch, write_config

from lerobot_policy_pi05_rl.data.batch import POSITION
from lerobot_policy_pi05_rl.noise import sample_noise
from lerobot_policy_pi05_rl.training import critic_metrics
from lerobot_policy_pi05_rl.training import evaluation as held_out
from lerobot_policy_pi05_rl.training.early_stopping import CriticEarlyStopping

NAN = float("nan")


def test_spearman_is_the_mean_over_episodes_and_knows_ranks_alone():
    returns = np.array([-3.0, -2, -1, -9, -8, -7, -1, -2, NAN])
    episodes = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2])  # the last has too few known returns
    assert critic_metrics.spearman_per_episode(np.exp(returns), returns, episodes) == pytest.approx(1.0)
    values = np.array([0.1, 0.2, 0.3, 0.3, 0.2, 0.1, 0, 0, 0])
    assert critic_metrics.spearman_per_episode(values, returns, episodes) == pytest.approx(0.0)  # +1 and −1
    assert critic_metrics.spearman_per_episode(np.zeros(9), returns, episodes) == 0.0
    assert np.isnan(critic_metrics.spearman_per_episode(values, np.full(9, NAN), episodes))


def test_auc_counts_pairs_and_ties_half():
    scores, positive = np.array([0.9, 0.4, 0.4, 0.1]), np.array([True, True, False, False])
    assert critic_metrics.auc(scores, positive) == pytest.approx(3.5 / 4)
    assert critic_metrics.auc(scores, ~positive) == pytest.approx(0.5 / 4)
    assert np.isnan(critic_metrics.auc(scores, np.ones(4, dtype=bool)))


def test_calibration_error_by_hand():
    values, returns = np.array([0.4, 0.0, 0.2, 0.1, 9.0]), np.array([0.5, 0.1, 0.1, 0.2, NAN])
    # bins {0, 0.1} and {0.2, 0.4}: |0.05 − 0.15| and |0.3 − 0.3|
    assert critic_metrics.calibration_error(values, returns, bins=2) == pytest.approx(0.05)
    assert critic_metrics.calibration_error(returns, returns) == 0.0


def test_the_middle_frame_of_each_episode():
    episodes, places = np.array([4, 4, 4, 1, 1]), np.array([0.0, 0.4, 1.0, 0.1, 0.8])
    assert critic_metrics.middle_frames(episodes, places).tolist() == [4, 1]


@pytest.mark.usefixtures("float64")
@torch.no_grad()
def test_flow_losses_share_one_prefix_and_equal_the_training_forwards():
    algorithm, batch = make_algorithm(), make_batch()
    policy, runs = algorithm.policy, []
    prefix = policy.embed_observation(batch)
    length = prefix.embs.shape[1]
    hook = policy.model.language_model.layers[0].self_attn.q_proj.register_forward_hook(
        lambda _, args, __: runs.append(args[0].shape[1])
    )
    cache = policy.model.encode_prefix(prefix)
    columns = held_out.flow_columns(algorithm, cache, batch)
    held_out.sample_columns(algorithm, cache, batch)
    hook.remove()
    assert runs == [length]
    sampled = sample_noise(3, batch[POSITION], policy.config)
    for name, tag in (("positive", 1), ("none", -1)):
        tags = None if tag < 0 else torch.full((6,), tag)
        loss, _ = algorithm.losses.actor_loss(cache, tags, batch, sampled)
        assert_same(columns[f"loss_actor_{name}"].mean(), loss)
    assert abs(columns["loss_actor_positive"] - columns["loss_actor_none"]).max() > 1e-5


@pytest.mark.usefixtures("float64")
@torch.no_grad()
def test_sampled_chunks_are_those_that_the_policy_samples_under_each_tag():
    algorithm, batch = make_algorithm(guidance_scale=1.0), make_batch()
    policy, config = algorithm.policy, algorithm.policy.config
    columns = held_out.sample_columns(algorithm, encode_prefix(policy, batch), batch)
    noise, chunks = sample_noise(3, batch[POSITION], config).noise, {}
    for name in ("positive", "none"):
        config.inference_advantage = name
        chunks[name] = policy.predict_action_chunk(batch, noise=noise)
        valid = ~batch["action_is_pad"][:, :3]
        error = (chunks[name] - batch["action"])[:, :3].abs().mean(dim=2)
        expected = (error * valid).sum(dim=1) / valid.sum(dim=1)
        assert_same(columns[f"action_error_{name}"], expected)
    grip = (chunks["positive"] - chunks["none"]).square().mean(dim=(1, 2))
    assert_same(columns["tag_grip"], grip)
    untagged = make_algorithm(policy_extraction="weighted")
    assert set(held_out.shown_tags(untagged, batch)) == {"none"}


# ── Early stopping ─────────────────────────────────────────────────────────────────────────────────────────────────


def observed(early_stopping, *pairs, auc=0.9, episodes=5):
    for step, (loss, gap) in enumerate(pairs):
        metrics = {"loss_critic": loss, "critic_gap": gap, "auc_value_outcome": auc, "auc_episodes": episodes}
        early_stopping.on_evaluate(metrics, step)
        with torch.no_grad():
            early_stopping.critic.weight.add_(1.0)  # the critic trains on


def test_patience_restores_the_weights_of_the_best_evaluation_and_stops():
    critic = torch.nn.Linear(1, 1)
    torch.nn.init.zeros_(critic.weight)
    early_stopping = CriticEarlyStopping(critic, patience=2)
    observed(early_stopping, (3.0, 0.0), (2.0, 0.0), (2.1, 0.0))
    assert not early_stopping.stopped and float(critic.weight.detach()) == 3.0
    other = CriticEarlyStopping(torch.nn.Linear(1, 1), patience=2)
    other.load_state_dict(early_stopping.state_dict())
    for each in (early_stopping, other):
        each.on_evaluate({"loss_critic": 2.5, "critic_gap": 0.1}, 9)
        assert each.stopped and float(each.critic.weight.detach()) == 1.0
    forever = CriticEarlyStopping(torch.nn.Linear(1, 1), patience=None)
    observed(forever, *[(3.0, 0.0)] * 9)
    assert not forever.stopped and forever.weights == {}


def test_the_warning_needs_a_rise_on_held_out_and_a_fall_on_training_frames_and_comes_once(caplog):
    def warnings(*pairs, **kwargs):
        caplog.clear()
        observed(CriticEarlyStopping(torch.nn.Linear(1, 1), None), *pairs, **kwargs)
        return [record.message for record in caplog.records if record.levelno == logging.WARNING]

    assert warnings((3.0, 0.0), (2.0, 0.0), (2.05, 0.4)) == []
    assert warnings((3.0, 0.0), (2.0, 0.0), (2.5, 0.1)) == []  # both rise: it is not overfitting
    (message,) = warnings((3.0, 0.0), (2.0, 0.0), (2.5, 1.5), (2.6, 1.7))
    assert "2.500, 0.500 above its best" in message and "from 2.000 to 1.000" in message
    assert warnings((3.0, 0.0), auc=0.5) == []  # it has learned nothing yet
    assert "AUC 0.50" in warnings((3.0, 0.2), auc=0.5)[0]
    assert warnings((3.0, 0.2), auc=0.5, episodes=4) == []  # of so few, a coin says as much


def test_a_stopped_critic_stays_and_the_actor_goes_on():
    algorithm = make_algorithm(critic_early_stop=1, policy_update_freq=2, critic_folds=2)
    for loss in (1.0, 2.0):
        algorithm.on_evaluate({"loss_critic": loss, "critic_gap": 0.0})
    before = {n: p.detach().clone() for n, p in algorithm.policy.named_parameters()}
    for _ in range(2):
        stats = algorithm.update(iter([make_batch()]))
    moved = {n for n, p in algorithm.policy.named_parameters() if not torch.equal(p, before[n])}
    assert moved and not any("critic" in name for name in moved)
    assert "critic" not in stats.grad_norms and "advantage_mean" in stats.extra


# ── Whole runs ───────────────────────────────────────────────────────────────────────────────────────────────────


LENGTH, EPISODES = 6, 32


@pytest.fixture(scope="module")
def telling_dataset(tmp_path_factory):
    """Successes are bright, failures dark; a bar moves down as the episode goes on; each episode has its texture."""
    root = tmp_path_factory.mktemp("data") / "telling"
    textures = np.random.default_rng(0).integers(0, 60, (EPISODES, 32, 32, 3))

    def picture(episode: int, step: int) -> np.ndarray:
        image = textures[episode] + (140 if episode % 2 == 0 else 20)
        image[5 * step : 5 * step + 5] = 255
        return image.clip(0, 255).astype(np.uint8)

    kinds = [{"length": LENGTH, "success": number % 2 == 0} for number in range(EPISODES)]
    make_dataset(root, kinds, picture=picture)
    return root


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_critic_given_shuffled_outcomes_is_caught_and_one_given_true_ones_is_not(
    tmp_path, telling_dataset, caplog, shuffled
):
    lines = [f"{n},{'success' if (n // 2 if shuffled else n) % 2 == 0 else 'failure'}" for n in range(EPISODES)]
    (tmp_path / "outcomes.csv").write_text("\n".join(["episode_index,outcome", *lines]))
    config = write_config(
        tmp_path / "c.json",
        telling_dataset,
        tmp_path / "run",
        reward__outcome_file=str(tmp_path / "outcomes.csv"),
        dataset__eval_split=0.4,
        eval_steps=50,
        log_freq=50,
        batch_size=16,
        save_checkpoint=False,
        policy__offline_steps=250,
        policy__critic_warmup_steps=10**6,
        policy__advantage_labels="running",
    )
    with caplog.at_level("WARNING"):
        run(config)
    warned = [message for message in caplog.messages if message.startswith("The critic")]
    last = [line for line in logged(tmp_path / "run") if "eval/loss_critic" in line][-1]
    if shuffled:
        assert last["eval/auc_value_outcome"] <= 0.7 and last["eval/critic_gap"] > 0.1
        assert warned
    else:
        assert last["eval/auc_value_outcome"] > 0.9 and last["eval/spearman_value_return"] > 0.6
        assert warned == []


@pytest.mark.parametrize("patience", [1, 3])
def test_resume_is_exact_with_a_critic_that_stops(tmp_path, telling_dataset, patience):
    """Patience 1 stops before the interruption, 3 after it if at all; the last checkpoint holds the best critic."""
    options = {
        "dataset__eval_split": 0.25,
        "eval_steps": 2,
        "max_eval_samples": 8,
        "policy__critic_early_stop": patience,
        "policy__critic_lr": 0.05,
        "policy__offline_steps": 12,
        "save_freq": 6,
    }
    whole = run(write_config(tmp_path / "a.json", telling_dataset, tmp_path / "a", **options))
    config = write_config(tmp_path / "b.json", telling_dataset, tmp_path / "b", **options)
    run(config)
    step_back(tmp_path / "b", "000006")
    torch.manual_seed(9)
    resumed = run(config, resume="true")
    for name in ("pretrained_model/model.safetensors", "training_state/recap_state.safetensors"):
        first, second = load_file(whole / name), load_file(resumed / name)
        assert first.keys() == second.keys()
        assert [key for key in first if not torch.equal(first[key].nan_to_num(-9), second[key].nan_to_num(-9))] == []
    assert logged(tmp_path / "a") == logged(tmp_path / "b")
    state = load_file(whole / "training_state" / "recap_state.safetensors")
    model = load_file(whole / "pretrained_model" / "model.safetensors")
    critic = {name: tensor for name, tensor in model.items() if ".critic." in name}
    assert critic
    for name, tensor in critic.items():
        assert torch.equal(tensor, state[f"best_critic.{name.split('.critic.')[1]}"]), name


def test_every_metric_is_logged_by_default_and_each_switch_turns_them_off(tmp_path, telling_dataset):
    def logged_metrics(name, **options):
        options = {"max_eval_samples": 24, "save_checkpoint": False, "policy__offline_steps": 1, **options}
        run(write_config(tmp_path / f"{name}.json", telling_dataset, tmp_path / name, **options))
        keys = {key for line in logged(tmp_path / name) for key in line if key.startswith("eval/")}
        return {key.removeprefix("eval/") for key in keys}

    actor = {f"{kind}_{tag}" for kind in ("loss_actor", "action_error") for tag in ("positive", "none")}
    critic = {"loss_critic", "critic_gap", "spearman_value_return", "auc_value_outcome", "calibration_error"}
    critic.add("auc_episodes")
    split = {"dataset__eval_split": 0.25}
    assert logged_metrics("all", **split) == critic | actor | {"tag_grip"}
    untagged = {"loss_actor_none", "action_error_none"}
    assert logged_metrics("weighted", policy__policy_extraction="weighted", **split) == critic | untagged
    assert logged_metrics("cloning", policy__policy_extraction="none", **split) == untagged
    assert logged_metrics("td", policy__critic_target="td", policy__critic_folds=2, **split) == critic | actor | {
        "tag_grip"
    }
    assert logged_metrics("no split") == logged_metrics("no steps", eval_steps=0, **split) == set()
