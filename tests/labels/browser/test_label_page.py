"""The page in headless Chromium: every key, reload, two tabs, a broken video, a thousand episodes."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import numpy as np
import pyarrow.parquet as pq
import pytest
from chromium import Tab, chromium, needs_chromium
from recordings import make_dataset
from tiny import write_config

from lerobot_policy_pi05_rl.cli import main as cli
from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.data.outcomes import FoundOutcome
from lerobot_policy_pi05_rl.labels.browser.pictures import PictureBlocks
from lerobot_policy_pi05_rl.labels.browser.server import LabelPage
from lerobot_policy_pi05_rl.labels.browser.session import Episode, LabelSession
from lerobot_policy_pi05_rl.labels.outcomes import outcome_sources

EPISODES = [{"length": 12 + k, "task": f"task {k % 2}"} for k in range(6)]
NOW, OUTCOMES = "current && current.episode", "state.episodes.map((e) => e.outcome ?? '-').join(' ')"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    make_dataset(folder / "data", EPISODES, columns=(), video=True)
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("browser")) as port:
        yield port


@pytest.fixture
def config(recorded, tmp_path):
    (tmp_path / "data").symlink_to(recorded / "data")
    own = tmp_path / "data.labels" / "outcomes.csv"
    return write_config(tmp_path / "c.json", tmp_path / "data", tmp_path / "run", reward__outcome_file=str(own))


@contextmanager
def served(config: Path):
    """Yields the address of the command's page; the command is ended by SIGINT and must end well."""
    command = [sys.executable, "-m", "lerobot_policy_pi05_rl.labels.command", str(config), "--browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "DISPLAY": ""})
    line = process.stdout.readline()
    try:
        yield re.search(r"http://\S+", line)[0]
    finally:
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "unlabelled" in rest and "The configuration reads" in rest


def outcomes_of(config: Path) -> dict[str, str]:
    lines = (config.parent / "data.labels" / "outcomes.csv").read_text().split()[1:]
    return dict(line.split(",") for line in lines)


@needs_chromium
def test_a_recording_is_labelled_by_its_keys(browser, config):
    async def label(address: str) -> None:
        async with aiohttp.ClientSession() as session:
            tab = await Tab.open(session, browser, address)
            await tab.until(NOW, 0)
            await tab.until("[...document.querySelectorAll('figure')].every((f) => f.dataset.shows !== undefined)")
            await tab.press("s")
            await tab.until(NOW, 1)
            await tab.until("document.getElementById('said').textContent", "episode 0: success, saved")
            assert outcomes_of(config) == {"0": "success"}
            await tab.press("f")
            await tab.until(NOW, 2)
            await tab.press("t")
            await tab.until(OUTCOMES, "success failure truncated - - -")
            await tab.press("u")
            await tab.until(NOW, 2)
            await tab.until(OUTCOMES, "success failure - - - -")
            await tab.press("ArrowUp")
            await tab.until(NOW, 1)
            await tab.press("ArrowDown")
            await tab.until(NOW, 2)
            await tab.press("e")  # from its start
            await tab.press(" ")
            assert await tab.look("playing") is False
            await tab.look("at = 3, paint()")
            await tab.press("ArrowRight")
            await tab.until("document.querySelector('figure').dataset.shows", "4")
            await tab.press("ArrowLeft")
            await tab.until("document.querySelector('figure').dataset.shows", "3")
            await tab.press("+")
            assert await tab.look("document.getElementById('speed').value") == "4"
            await tab.call("Page.reload")
            await tab.until(NOW, 2)
            await tab.until("[backwards, document.getElementById('speed').value].join()", "false,4")
            await tab.look(
                "document.getElementById('shown').value = 'unlabelled', document.getElementById('shown').onchange()"
            )
            await tab.press("s")
            await tab.until(NOW, 3)
            await tab.press("ArrowUp")
            await asyncio.sleep(0.3)
            assert await tab.look(NOW) == 3, "what has an outcome is passed over"
            await tab.look("document.querySelectorAll('#strip button')[0].click()")
            await tab.until(NOW, 0)
            shown = await tab.look("document.getElementById('counts').textContent")
            assert shown == "2 success · 1 failure · 3 unlabelled"

    with served(config) as address:
        asyncio.run(label(address))
    assert outcomes_of(config) == {"0": "success", "1": "failure", "2": "success"}


@needs_chromium
def test_two_tabs_know_of_each_other(browser, config):
    async def label(address: str) -> None:
        async with aiohttp.ClientSession() as session:
            first, second = [await Tab.open(session, browser, address) for _ in range(2)]
            for tab in (first, second):
                await tab.until(NOW, 0)
            for key in "sf":  # as fast as they can be sent
                await first.press(key)
            await first.until(OUTCOMES, "success failure - - - -")
            await second.press("t")  # of the same episode: the last word counts
            await second.until("document.getElementById('said').textContent", "episode 0: truncated, saved")
            await first.call("Page.bringToFront")
            await first.until(OUTCOMES, "truncated failure - - - -")

    with served(config) as address:
        asyncio.run(label(address))
    assert outcomes_of(config) == {"0": "truncated", "1": "failure"}


@needs_chromium
def test_a_broken_video_is_said_in_its_place_and_the_rest_goes_on(browser, config, recorded, tmp_path):
    (tmp_path / "data").unlink()
    make_dataset(tmp_path / "data", EPISODES[:2], columns=(), video=True)
    broken = next((tmp_path / "data" / "videos" / "observation.images.front").rglob("*.mp4"))
    broken.write_bytes(broken.read_bytes()[:200])

    async def label(address: str) -> None:
        async with aiohttp.ClientSession() as session:
            tab = await Tab.open(session, browser, address)
            await tab.until("document.querySelectorAll('figure .fault').length", 1)
            assert "cannot be decoded" in await tab.look("document.querySelector('figure .fault').textContent")
            await tab.until("[...document.querySelectorAll('figure canvas')].length", 1)
            await tab.press("s")
            await tab.until(NOW, 1)

    with served(config) as address:
        asyncio.run(label(address))
    assert outcomes_of(config) == {"0": "success"}


@needs_chromium
def test_a_thousand_episodes_can_be_gone_through(browser, config):
    sources = outcome_sources(load_config(config))
    session = LabelSession(sources, None)
    session.episodes = {(0, k): Episode(0, k, 12, "a task", FoundOutcome()) for k in range(1000)}
    session.set_outcome = lambda source, episode, outcome: session._set[source].update({episode: outcome})

    async def label() -> None:
        app = LabelPage(session, PictureBlocks(sources), {})
        runner = aiohttp.web.AppRunner(app.app())
        await runner.setup()
        await aiohttp.web.TCPSite(runner, "127.0.0.1", 0).start()
        address = f"http://127.0.0.1:{runner.addresses[0][1]}/{app.token}/"
        async with aiohttp.ClientSession() as client:
            tab = await Tab.open(client, browser, address)
            await tab.until("document.querySelectorAll('#strip button').length", 1000)
            for _ in range(20):
                await tab.press("s")
            await tab.until(NOW, 20)
            await tab.until("document.getElementById('counts').textContent", "20 success · 980 unlabelled")
        await runner.cleanup()

    asyncio.run(label())


@needs_chromium
def test_the_critics_curve_and_its_disagreement_are_shown(browser, config, tmp_path):
    folder = tmp_path / "run" / "labels"
    (tmp_path / "data").unlink()
    make_dataset(tmp_path / "data", [dict(each, success=k % 2 == 0) for k, each in enumerate(EPISODES)], video=True)
    cli_code = run_offline(config)
    assert cli_code == 0
    (labels,) = folder.glob("*.parquet")
    table = pq.read_table(labels)
    episodes = table["episode_index"].to_numpy()
    values = np.where(episodes == 3, 0.0, np.where(np.isin(episodes, (0, 2, 4)), -0.1, -0.9)).astype(np.float32)
    pq.write_table(table.set_column(table.column_names.index("value"), table.schema.field("value"), [values]), labels)

    async def label(address: str) -> None:
        async with aiohttp.ClientSession() as session:
            tab = await Tab.open(session, browser, address)
            await tab.until("document.getElementById('curve').hidden", False)
            assert await tab.look("document.querySelector('#curve .line').getAttribute('d').length > 40")
            await tab.look(
                "document.getElementById('order').value = 'disagreement', document.getElementById('order').onchange()"
            )
            await tab.until(NOW, 3)
            assert "disagrees by 1.00" in await tab.look("document.getElementById('task').textContent")

    command = [sys.executable, "-m", "lerobot_policy_pi05_rl.labels.command", str(config), "--browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "DISPLAY": ""})
    try:
        asyncio.run(label(re.search(r"http://\S+", process.stdout.readline())[0]))
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def run_offline(config: Path) -> int:
    """The exit code of a few steps of training."""
    steps = ["--policy.offline_steps=4", "--policy.critic_warmup_steps=2", "--reward.outcome_file=null"]
    with pytest.raises(SystemExit) as ended:
        cli(["offline", str(config), *steps, "--policy.policy_extraction=conditioning", "--dataset.eval_split=0"])
    return ended.value.code


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--port=80"], "give --browser, too"),
        (["--browser", "--port=99999"], "--port must be from 0"),
        (["--browser", "--list-unlabelled"], "exclude each other"),
        (["--browser", "--from=nothing"], "has no labeling 'nothing'"),
    ],
)
def test_bad_arguments_end_in_one_line(config, capsys, arguments, said):
    with pytest.raises(SystemExit) as ended:
        cli(["label", str(config), *arguments])
    assert ended.value.code == 2 and said in capsys.readouterr().err.splitlines()[-1]
