"""How long the page of ``pi05-rl label CONFIG --browser`` makes a person wait: from a key to the saved file, and the
first answers of a long recording.

    python benchmarks/label_page.py [--episodes 1000] [--keys 50]

The page's own server on a recording of two cameras, asked as the page asks; a browser's drawing is not in it.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path

from aiohttp.test_utils import TestClient, TestServer
from synthetic_dataset import CAMERAS, REPO_ID, copy_episodes, record

from lerobot_policy_pi05_rl.config.train import OfflineDatasetConfig
from lerobot_policy_pi05_rl.data.dataset import read_sources
from lerobot_policy_pi05_rl.labels.browser.pictures import PictureBlocks
from lerobot_policy_pi05_rl.labels.browser.server import LabelPage
from lerobot_policy_pi05_rl.labels.browser.session import LabelSession


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--keys", type=int, default=50)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = copy_episodes(record(Path(folder) / "ten", 10, 30), Path(folder) / "data", args.episodes // 10)
        asyncio.run(measure(root, args.keys))


async def measure(root: Path, keys: int) -> None:
    """Of the recording in ``root``."""
    began = time.perf_counter()
    sources = read_sources(OfflineDatasetConfig(repo_id=REPO_ID, root=str(root)), {}, 1e-4, pictures=False)
    page = LabelPage(LabelSession(sources, None), PictureBlocks(sources), {})
    opened = time.perf_counter() - began
    async with TestClient(TestServer(page.app())) as client:

        async def ask(method: str, path: str, **options) -> tuple[float, bytes]:
            began = time.perf_counter()
            async with client.request(method, f"/{page.token}/{path}", **options) as answer:
                assert answer.status == 200, path
                body = await answer.read()
            return time.perf_counter() - began, body

        listed, state = await ask("GET", "state")
        episodes = json.loads(state)["episodes"]
        shown, _ = await ask("GET", "pictures/0/0/0", params={"camera": CAMERAS[0]})
        saved = []
        for each in episodes[:keys]:
            body = json.dumps({"source": 0, "episode": each["episode"], "outcome": "failure"})
            saved.append((await ask("POST", "outcome", data=body))[0])
        written = page.session.path.read_text().count("failure")
    print(f"{len(episodes)} episodes: read in {opened:.2f} s, listed in {listed * 1e3:.0f} ms")
    print(f"an episode's last pictures of one camera: {shown * 1e3:.0f} ms")
    print(
        f"from a key to the saved file: {statistics.median(saved) * 1e3:.1f} ms, at most {max(saved) * 1e3:.1f}; "
        f"{written} of {len(saved)} outcomes are in it"
    )


if __name__ == "__main__":
    main()
