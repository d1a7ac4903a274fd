"""The page's server: loopback alone, a token in every address, nothing else is served."""

import asyncio
import json
import logging
import secrets
import signal
from collections.abc import Awaitable, Callable, Mapping
from importlib.resources import files

from aiohttp import web

from ...errors import UserError
from ...returns import Outcome
from .pictures import BLOCK, PictureBlocks, shown_frames, stride
from .session import Episode, LabelSession
from .values import Curve, disagreement

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
# The page is one file; what it fetches comes from here.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:"
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class LabelPage:
    """The page of one session."""

    def __init__(self, session: LabelSession, pictures: PictureBlocks, curves: Mapping[tuple[int, int], Curve]):
        self.session, self.pictures, self.curves = session, pictures, curves
        self.token = secrets.token_urlsafe(16)

    def app(self) -> web.Application:
        """Everything that is served lies under the token; whoever does not know it is told that nothing is there."""
        app = web.Application(middlewares=[_guarded])
        app.add_routes(
            [
                web.get(f"/{self.token}/", self.page),
                web.get(f"/{self.token}/state", self.state),
                web.post(f"/{self.token}/outcome", self.set_outcome),
                web.post(f"/{self.token}/undo", self.undo),
                web.get(f"/{self.token}/pictures/{{source:\\d+}}/{{episode:\\d+}}/{{block:\\d+}}", self.block),
                web.get(f"/{self.token}/curve/{{source:\\d+}}/{{episode:\\d+}}", self.curve),
            ]
        )
        return app

    async def page(self, request: web.Request) -> web.Response:
        """The page itself."""
        return web.Response(text=files(__package__).joinpath("page.html").read_text(), content_type="text/html")

    async def state(self, request: web.Request) -> web.Response:
        """Datasets, and every episode in their order."""
        datasets = []
        for number, source in enumerate(self.session.sources):
            fps, cameras = self.pictures.fps(number), self.pictures.frames[number].cameras
            datasets.append({"name": source.name, "fps": fps, "shown_fps": fps / stride(fps), "cameras": cameras})
        episodes = [self._episode(each) for each in self.session.episodes.values()]
        return web.json_response(
            {"datasets": datasets, "block": BLOCK, "episodes": episodes, "can_undo": self.session.can_undo}
        )

    async def set_outcome(self, request: web.Request) -> web.Response:
        """``{"source": 0, "episode": 3, "outcome": "success" | "failure" | "truncated" | null}``."""
        try:
            asked = json.loads(await request.text())
            source, episode = int(asked["source"]), int(asked["episode"])
            outcome = None if asked["outcome"] is None else Outcome(asked["outcome"])
        except (ValueError, KeyError, TypeError) as error:
            raise web.HTTPBadRequest(text="source, episode and outcome are expected") from error
        self.session.set_outcome(source, episode, outcome)
        return self._saved(source, episode)

    async def undo(self, request: web.Request) -> web.Response:
        """The episode whose outcome was taken back; null: there is nothing to take back."""
        found = self.session.undo()
        return web.json_response(None) if found is None else self._saved(*found)

    async def block(self, request: web.Request) -> web.Response:
        """A block of one camera's pictures (``?camera=``); empty behind the last one."""
        source, episode, block = (int(request.match_info[name]) for name in ("source", "episode", "block"))
        camera, each = request.query.get("camera", ""), self.session.episodes.get((source, episode))
        if each is None or camera not in self.pictures.frames[source].cameras:
            raise web.HTTPNotFound
        body = await asyncio.to_thread(self.pictures.read, source, episode, each.length, camera, block)
        return web.Response(body=body)

    async def curve(self, request: web.Request) -> web.Response:
        """V of the frames that are shown, and whether they are tagged; null without a labeling."""
        source, episode = (int(request.match_info[name]) for name in ("source", "episode"))
        found = self.curves.get((source, episode))
        if found is None:
            return web.json_response(None)
        shown = shown_frames(len(found.values), self.pictures.fps(source))
        values = [round(value, 4) if value == value else None for value in found.values[shown].tolist()]
        return web.json_response({"values": values, "positive": found.positive[shown].tolist()})

    def _episode(self, each: Episode) -> dict:
        found = self.session.found(each.source, each.index)
        return {
            "source": each.source,
            "episode": each.index,
            "frames": each.length,
            "pictures": len(shown_frames(each.length, self.pictures.fps(each.source))),
            "task": each.task,
            "outcome": found.outcome,
            "by": found.by,
            "disagreement": disagreement(self.curves.get((each.source, each.index)), found.outcome),
        }

    def _saved(self, source: int, episode: int) -> web.Response:
        found = self._episode(self.session.episodes[source, episode])
        return web.json_response({"episode": found, "can_undo": self.session.can_undo})


@web.middleware
async def _guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A page elsewhere must not reach this one under another name of this machine (DNS rebinding); bad input and a
    full disk are one line for the page."""
    if request.host.rpartition(":")[0] not in (HOST, "localhost"):
        raise web.HTTPForbidden
    try:
        response = await handler(request)
    except UserError as error:
        response = web.Response(status=409, text=str(error))
    except OSError as error:
        response = web.Response(status=507, text=f"not saved: {error.strerror}")
    response.headers.update(HEADERS)
    return response


async def serve(page: LabelPage, port: int, ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        port: 0: any that is free.
        ready: is told the page's address.

    Raises:
        UserError: the port is taken.
    """
    runner = web.AppRunner(page.app(), access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, HOST, port)
        try:
            await site.start()
        except OSError as error:
            raise UserError(f"--port {port}: {error.strerror}; without --port one that is free is taken") from error
        stopped, loop = asyncio.Event(), asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stopped.set)
        ready(f"http://{HOST}:{runner.addresses[0][1]}/{page.token}/")
        await stopped.wait()
    finally:
        await runner.cleanup()
