"""Prompts and normalisation, and whether they travel inside a checkpoint."""

import re
import shutil
import socket
import time

import pytest
import torch
from lerobot.policies.factory import make_pre_post_processors
from lerobot.policies.pi05.processor_pi05 import Pi05PrepareStateTokenizerProcessorStep
from lerobot.utils.constants import ACTION, OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS, OBS_STATE
from tiny import CAMERAS, tiny_config

from lerobot_policy_pi05_rl.errors import UserError
from lerobot_policy_pi05_rl.processor_pi05_rl import (
    PreparePromptStep,
    build_tasks_tokenizer,
    make_pi05_rl_pre_post_processors,
    make_tokenizer,
    tokenizer_from_checkpoint,
)

TASKS = ["pick the cube", "open_the drawer, slowly"]
STATS = {
    OBS_STATE: {"q01": torch.tensor([-2.0, 0.0, 10.0, -1.0]), "q99": torch.tensor([2.0, 1.0, 30.0, 1.0])},
    ACTION: {"q01": torch.tensor([-1.0, 0.0, 5.0]), "q99": torch.tensor([3.0, 1.0, 9.0])},
}
IN_RANGE = torch.tensor([[0.0, 0.5, 20.0, 0.25], [1.0, 0.25, 15.0, -0.5]])


def batch(state=IN_RANGE, tasks=TASKS) -> dict:
    return {
        OBS_STATE: state,
        ACTION: torch.tensor([[[1.0, 0.5, 5.0]], [[3.0, 0.0, 9.0]]]),
        CAMERAS[0]: torch.zeros(2, 3, 4, 4),
        "task": list(tasks),
    }


@pytest.fixture
def processors():
    return make_pi05_rl_pre_post_processors(tiny_config(), STATS, tokenizer=build_tasks_tokenizer(TASKS))


def prompts(preprocessor, samples) -> list[str]:
    """What the tokens of a batch say."""
    out = preprocessor(samples)
    tokenizer = build_tasks_tokenizer(TASKS)
    pairs = zip(out[OBS_LANGUAGE_TOKENS], out[OBS_LANGUAGE_ATTENTION_MASK], strict=True)
    return [tokenizer.decode(tokens[mask.bool()]) for tokens, mask in pairs]


def test_the_tasks_tokenizer_knows_the_tasks_the_prompt_and_every_state_bin():
    tokenizer = build_tasks_tokenizer(TASKS)
    states = " ".join(map(str, range(256)))
    prompts_ = [f"Task: {task.replace('_', ' ')}, State: {states};\nAction: " for task in TASKS]
    for text in prompts_:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert re.sub(r"\s", "", tokenizer.decode(ids)) == re.sub(r"\s", "", text)
    assert len({tuple(tokenizer(str(bin_))["input_ids"]) for bin_ in range(256)}) == 256  # a bin is a word of its own
    assert tokenizer("unheard of")["input_ids"] == [tokenizer.unk_token_id] * 2
    assert build_tasks_tokenizer(TASKS).get_vocab() == tokenizer.get_vocab()


def test_a_prompt_holds_task_and_state_and_nothing_of_the_tag(processors):
    # normalised to [-1, 1]: 0, 0, 0, 0.25 and 0.5, -0.5, -0.5, -0.5; bin = floor((x + 1) · 128)
    first, second = prompts(processors[0], batch())
    assert first == "Task : pick the cube , State : 128 128 128 160 ; Action :"
    assert second == "Task : open the drawer , slowly , State : 192 64 64 64 ; Action :"


def test_a_state_outside_the_range_falls_into_the_outermost_bins(processors):
    outside = torch.tensor([[-9.0, 1.7, 9.0, 99.0], [-2.0, 1.0, 10.0, 1.0]])  # beyond the quantiles, and at them
    for prompt in prompts(processors[0], batch(state=outside)):
        assert "State : 0 255 0 255 ;" in prompt

    def words(step, state):
        transition = {"observation": {OBS_STATE: torch.tensor([state])}, "complementary_data": {"task": ["t"]}}
        return re.search(r"State: (.*);", step(transition)["complementary_data"]["task"][0]).group(1).split()

    ours, stock = PreparePromptStep(), Pi05PrepareStateTokenizerProcessorStep()
    assert words(stock, [-1.5, 0.0]) == ["-1", "128"]  # why the step exists
    assert words(ours, [-1.5, 0.0]) == ["0", "128"]
    inside = torch.linspace(-1, 1, 101).tolist()
    assert words(ours, inside) == words(stock, inside)


def test_shorter_prompts_are_padded_and_masked(processors):
    out = processors[0](batch())
    lengths = out[OBS_LANGUAGE_ATTENTION_MASK].sum(dim=1)
    assert lengths.tolist() == [15, 17]
    assert out[OBS_LANGUAGE_TOKENS].shape == (2, 24)  # as long as the batch's longest, in eights
    assert (out[OBS_LANGUAGE_TOKENS][0, 15:] == build_tasks_tokenizer(TASKS).pad_token_id).all()


def test_a_prompt_that_is_too_long_is_refused_rather_than_cut():
    def preprocess(length):
        config = tiny_config(tokenizer_max_length=length)
        return make_pi05_rl_pre_post_processors(config, STATS, tokenizer=build_tasks_tokenizer(TASKS))[0](batch())

    assert preprocess(17)[OBS_LANGUAGE_TOKENS].shape == (2, 24), "padding is not counted"
    with pytest.raises(UserError, match=r"17 tokens but policy\.tokenizer_max_length is 16: 'Task: open the drawer"):
        preprocess(16)


def test_the_postprocessor_inverts_the_normalisation_of_actions(processors):
    preprocessor, postprocessor = processors
    normalised = preprocessor(batch())[ACTION]
    torch.testing.assert_close(normalised, torch.tensor([[[0.0, 0.0, -1.0]], [[1.0, -1.0, 1.0]]]))
    torch.testing.assert_close(postprocessor(normalised), batch()[ACTION])


def assert_same(first: dict, second: dict) -> None:
    tensors = {key: value for key, value in first.items() if isinstance(value, torch.Tensor)}
    assert {OBS_STATE, ACTION, OBS_LANGUAGE_TOKENS, OBS_LANGUAGE_ATTENTION_MASK} <= tensors.keys()
    for key, value in tensors.items():
        assert torch.equal(value, second[key]), key


def test_saved_processors_moved_elsewhere_do_the_same_without_network(processors, tmp_path):
    for processor in processors:
        processor.save_pretrained(tmp_path / "here")
    (tmp_path / "far").mkdir()
    shutil.move(tmp_path / "here", tmp_path / "far" / "away")
    loaded = make_pre_post_processors(tiny_config(), pretrained_path=str(tmp_path / "far" / "away"))
    assert_same(processors[0](batch()), loaded[0](batch()))
    chunk = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(processors[1](chunk), loaded[1](chunk))
    for text in (path.read_text() for path in (tmp_path / "far" / "away").glob("*.json")):
        assert str(tmp_path) not in text

    for processor in loaded:  # and once more: what was loaded can be saved
        processor.save_pretrained(tmp_path / "again")
    again = make_pre_post_processors(tiny_config(), pretrained_path=str(tmp_path / "again"))
    assert_same(processors[0](batch()), again[0](batch()))


def test_a_checkpoints_tokenizer_serves_a_run_with_other_statistics(processors, tmp_path):
    for processor in processors:
        processor.save_pretrained(tmp_path)
    tokenizer = tokenizer_from_checkpoint(tmp_path)
    assert tokenizer.get_vocab() == build_tasks_tokenizer(TASKS).get_vocab()
    fresh, _ = make_pi05_rl_pre_post_processors(tiny_config(), STATS, tokenizer=tokenizer)
    assert_same(processors[0](batch()), fresh(batch()))


def test_a_directory_without_our_processors_has_no_tokenizer(tmp_path):
    assert tokenizer_from_checkpoint(tmp_path) is None


def test_the_tasks_tokenizer_needs_tasks():
    assert len(make_tokenizer(tiny_config(), TASKS)) == len(build_tasks_tokenizer(TASKS))
    for tasks in (None, []):
        with pytest.raises(UserError, match="needs a dataset with tasks"):
            make_tokenizer(tiny_config(), tasks)


def test_a_tokenizer_with_more_words_than_the_embedding_has_rows_is_refused():
    size = len(build_tasks_tokenizer(TASKS))
    assert len(make_tokenizer(tiny_config(vocab_size=size), TASKS)) == size
    with pytest.raises(UserError, match=rf"has {size} tokens but policy\.vocab_size is {size - 1}"):
        make_tokenizer(tiny_config(vocab_size=size - 1), TASKS)


def test_a_local_tokenizer_directory_works(tmp_path, processors):
    build_tasks_tokenizer(TASKS).save_pretrained(tmp_path / "tokenizer")
    config = tiny_config(tokenizer=str(tmp_path / "tokenizer"))
    preprocessor, _ = make_pi05_rl_pre_post_processors(config, STATS)
    assert_same(processors[0](batch()), preprocessor(batch()))


@pytest.mark.parametrize("name", ["google/paligemma-3b-pt-224", "no/such-tokenizer", "/no/such/directory", "empty"])
def test_a_tokenizer_that_cannot_be_had_offline_is_named_at_once(tmp_path, monkeypatch, name):
    (tmp_path / "empty").mkdir()
    name = str(tmp_path / "empty") if name == "empty" else name
    waited = []  # LeRobot asks the Hub again and again, for a minute
    monkeypatch.setattr(time, "sleep", waited.append)
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: waited.append(address))
    with pytest.raises(UserError, match=rf"the tokenizer '{name}' \(policy\.tokenizer\)"):
        make_tokenizer(tiny_config(tokenizer=name), TASKS)
    assert waited == []
