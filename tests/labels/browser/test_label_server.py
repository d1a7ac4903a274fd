"""The page's server: what it answers, and to whom."""

import asyncio
import json

import numpy as np
import pytest
from aiohttp.test_utils import TestClient, TestServer
from recordings import make_dataset
from tiny import write_config

from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.labels.browser import server
from lerobot_policy_pi05_rl.labels.browser.pictures import PictureBlocks
from lerobot_policy_pi05_rl.labels.browser.server import LabelPage
from lerobot_policy_pi05_rl.labels.browser.session import LabelSession
from lerobot_policy_pi05_rl.labels.browser.values import Curve, disagreement
from lerobot_policy_pi05_rl.labels.outcomes import outcome_sources
from lerobot_policy_pi05_rl.returns import Outcome

EPISODES = [{"length": 6, "success": k % 2 == 0, "task": f"task {k // 2}"} for k in range(4)]
CAMERA = "observation.images.front"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    make_dataset(folder / "data", EPISODES, columns=("next.success",))
    return folder / "data"


@pytest.fixture
def page(recorded, tmp_path):
    (tmp_path / "data").symlink_to(recorded)
    sources = outcome_sources(load_config(write_config(tmp_path / "c.json", tmp_path / "data", tmp_path / "run")))
    curve = Curve(np.array([-0.5, -0.4, np.nan, -0.2, -0.1, -0.1]), np.arange(6) > 2)
    return LabelPage(LabelSession(sources, None), PictureBlocks(sources), {(0, 0): curve, (0, 1): curve})


def asks(test):
    """The test with a client of its page."""

    def run(page):
        async def talk():
            async with TestClient(TestServer(page.app())) as client:
                await test(page, client)

        asyncio.run(talk())

    return run


@asks
async def test_the_state_lists_every_episode(page, client):
    state = await (await client.get(f"/{page.token}/state")).json()
    (dataset,) = state["datasets"]
    assert dataset["fps"] == 10.0 and CAMERA in dataset["cameras"] and not state["can_undo"]
    assert [each["outcome"] for each in state["episodes"]] == ["success", "failure"] * 2
    assert [each["task"] for each in state["episodes"]] == ["task 0", "task 0", "task 1", "task 1"]
    assert [each["disagreement"] for each in state["episodes"]] == [pytest.approx(0.1), pytest.approx(0.9), None, None]


@pytest.mark.parametrize(("fps", "shown"), [(5, 5.0), (10, 10.0), (25, 12.5), (30, 10.0)])
def test_the_page_is_told_how_many_pictures_a_second_are(page, fps, shown):
    """What it plays and its clock shows would be of another speed otherwise."""
    page.pictures.frames[0].info["fps"] = fps
    state = json.loads(asyncio.run(page.state(None)).text)
    assert (state["datasets"][0]["fps"], state["datasets"][0]["shown_fps"]) == (fps, shown)


@asks
async def test_an_outcome_is_saved_and_taken_back(page, client):
    body = {"source": 0, "episode": 3, "outcome": "truncated"}
    answer = await client.post(f"/{page.token}/outcome", data=json.dumps(body))
    found = await answer.json()
    assert found["episode"]["outcome"] == "truncated" and found["can_undo"]
    assert "3,truncated" in page.session.path.read_text()
    found = await (await client.post(f"/{page.token}/undo")).json()
    assert found["episode"]["outcome"] == "failure" and not found["can_undo"]
    assert await (await client.post(f"/{page.token}/undo")).json() is None


@asks
async def test_nonsense_is_answered_and_changes_nothing(page, client):
    for body, status in (
        ("nonsense", 400),
        ("[]", 400),
        ('{"source": 0, "episode": 1}', 400),
        ('{"source": 0, "episode": 1, "outcome": "perhaps"}', 400),
        ('{"source": 0, "episode": 99, "outcome": "success"}', 409),
        ('{"source": 7, "episode": 0, "outcome": null}', 409),
    ):
        answer = await client.post(f"/{page.token}/outcome", data=body)
        assert answer.status == status, body
    for path in ("pictures/0/0/0?camera=none", "pictures/0/99/0", "pictures/5/0/0", "pictures/0/0/-1", "../etc"):
        assert (await client.get(f"/{page.token}/{path}")).status == 404, path
    assert not page.session.path.exists()


@asks
async def test_nothing_is_served_without_the_token_or_under_another_name(page, client):
    for path in ("/", "/state", f"/{page.token[:-1]}/state", f"/{page.token}"):
        assert (await client.get(path)).status == 404, path
    answer = await client.get(f"/{page.token}/", headers={"Host": "robot.example"})
    assert answer.status == 403
    answer = await client.get(f"/{page.token}/")
    assert answer.status == 200 and "default-src 'none'" in answer.headers["Content-Security-Policy"]


@asks
async def test_pictures_and_curve_come_in_the_same_number(page, client):
    answer = await client.get(f"/{page.token}/pictures/0/0/0", params={"camera": CAMERA})
    assert answer.status == 200 and (await answer.read()).count(b"\xff\xd8\xff") == 6
    curve = await (await client.get(f"/{page.token}/curve/0/0")).json()
    assert curve["values"] == [-0.5, -0.4, None, -0.2, -0.1, -0.1] and curve["positive"] == [False] * 3 + [True] * 3
    assert await (await client.get(f"/{page.token}/curve/0/2")).json() is None


@asks
async def test_a_full_disk_is_said(page, client):
    def full(*_):
        raise OSError(28, "No space left on device")

    page.session.set_outcome = full
    body = json.dumps({"source": 0, "episode": 0, "outcome": "success"})
    answer = await client.post(f"/{page.token}/outcome", data=body)
    assert answer.status == 507 and await answer.text() == "not saved: No space left on device"


def test_a_port_that_is_taken_is_one_line(page, tmp_path):
    async def twice():
        def again(address: str) -> None:
            port = int(address.split(":")[2].split("/")[0])
            asked.append(asyncio.ensure_future(server.serve(page, port, again)))

        asked = []
        first = asyncio.ensure_future(server.serve(page, 0, again))
        while not asked:
            await asyncio.sleep(0.01)
        with pytest.raises(server.UserError, match=r"--port .*in use"):
            await asked[0]
        first.cancel()

    asyncio.run(twice())


@pytest.mark.parametrize(
    ("end", "outcome", "expected"),
    [
        (0.0, Outcome.SUCCESS, 0.0),
        (-0.9, Outcome.SUCCESS, 0.9),
        (-0.9, Outcome.FAILURE, 0.1),
        (-0.5, Outcome.TRUNCATED, None),
        (-0.5, None, None),
        (float("nan"), Outcome.SUCCESS, None),
    ],
)
def test_the_critic_disagrees_as_far_as_its_value_at_the_end(end, outcome, expected):
    found = disagreement(Curve(np.full(20, end), np.zeros(20, bool)), outcome)
    assert found == (None if expected is None else pytest.approx(expected))
