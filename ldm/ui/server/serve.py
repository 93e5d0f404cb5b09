"""`app.py`: the web page, served on this machine."""

import ipaddress
import os
import signal
import socket
import sys
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from ldm.common.errors import UserError
from ldm.model.computing import coding, device
from ldm.networks.computing.coding import Coding
from ldm.ui.app import App, make_app
from ldm.ui.generating.page_store import ServedFiles
from ldm.ui.server import connections
from ldm.ui.server.bodies import Bodies
from ldm.ui.server.guard import UPLOAD_BYTES, Guard

SESSIONS = 1000  # visitors whose last values are kept in memory
QUEUED = 64  # waiting requests; further ones are refused with a message


def main(config: dict[str, Any], job: str | None = None) -> None:
    """Serves the page until Ctrl-C."""
    serve(config, block=True)


def serve(config: Mapping[str, Any], block: bool = False) -> "Served":
    """Serves the page, until it ends if `block`. Raises UserError if it must not or can't be served."""
    user = credentials(config["host"], config["auth"], config["port"])
    proxy = proxy_address(config.get("proxy"), user)
    check_port(config["host"], config["port"])
    gradio = _gradio()
    place, how = device(config["device"]), coding(config)
    Coding(**how)  # raises UserError for invalid options before the page is there
    app = make_app(
        config["runs_dir"],
        config["run"],
        place,
        config["webhook"] or "",
        coding=how,
        preview_decoder=config.get("preview_decoder"),
    )
    os.environ["GRADIO_TEMP_DIR"] = str(app.served_files.path)  # the only folder that it serves files from
    if not proxy:
        os.environ["FORWARDED_ALLOW_IPS"] = (
            ""  # else uvicorn believes programs of this machine about their client's address
        )
    bodies = Bodies(lambda: app.served_files.limit // 2)
    from ldm.ui.page.layout import build_page
    from ldm.ui.page.style import CSS, HEAD, theme

    page = build_page(app)
    page.queue(max_size=QUEUED, default_concurrency_limit=4)
    # _frontend=False: gradio would fetch its own page and fail after 3 seconds, which a busy machine may take.
    _, local, _ = page.launch(
        server_name=config["host"], server_port=config["port"], auth=user, share=False, allowed_paths=[],
        prevent_thread_lock=True, quiet=True, theme=theme(gradio), css=CSS, head=HEAD, ssr_mode=False, _frontend=False,
        show_error=False,  # messages of other packages name folders of this machine
        state_session_capacity=SESSIONS,
        enable_monitoring=False, footer_links=[], max_file_size=UPLOAD_BYTES, mcp_server=False,
        root_path=proxy,
        app_kwargs={"middleware": _middleware(app.served_files, bodies, None if user else config["host"], proxy)},
    )  # fmt: skip
    connections.limit_connections(page.server.config)
    served = Served(app, page, local, bodies)
    app.watcher.start()
    print(f"the page is at {local}" + ("" if _is_local(config["host"]) else f", for {user and user[0]}"), flush=True)
    if block:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # as on Ctrl-C: the served files are removed
        try:
            page.block_thread()
        finally:
            served.close()
    return served


class Served:
    """A page that is being served, until `close`."""

    def __init__(self, app: App, page: Any, url: str, bodies: Bodies):
        self.app, self.page, self.url, self.bodies = app, page, url, bodies

    def close(self) -> None:
        """Ends the server and the parts behind it."""
        self.page.close(verbose=False)
        self.app.close()


def credentials(host: str, auth: str | None, port: int = 7860) -> tuple[str, str] | None:
    """User and password of the page. Raises UserError for a host that others could reach without a password."""
    user, colon, password = (auth or "").partition(":")
    if auth and not (user and colon and password):
        raise UserError("auth has to be USER:PASSWORD.")
    if not _is_local(host) and not auth:
        raise UserError(
            f"host={host} lets others in, who could generate, read files and start runs: give auth=USER:PASSWORD, "
            f"or leave host as it is and reach the page through ssh -L {port}:localhost:{port}."
        )
    return (user, password) if auth else None


def _is_local(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def proxy_address(address: str | None, user: tuple[str, str] | None) -> str | None:
    """The address at which a server before this one is reached, without a slash at its end.

    Raises UserError for an invalid address, and if the page has no password.
    """
    if not address:
        return None
    try:
        parts = urlsplit(address)
        is_one = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and "@" not in parts.netloc
    except ValueError:
        is_one = False
    if not is_one or parts.query or parts.fragment:
        raise UserError(f"proxy={address} has to be an address like https://gpu.example or https://gpu.example/ldm.")
    if not user:
        raise UserError(f"proxy={address} lets others in, who could generate and start runs: give auth=USER:PASSWORD.")
    return address.rstrip("/")


def origin_of(address: str) -> str:
    """Scheme, name and port of an address, as a browser's `Origin` has them."""
    parts = urlsplit(address.lower())
    usual = {"http": ":80", "https": ":443"}[parts.scheme]
    return f"{parts.scheme}://{parts.netloc.removesuffix(usual)}"


def _middleware(served_files: ServedFiles, bodies: Bodies, host: str | None, proxy: str | None = None) -> list[Any]:
    """The server's middleware: `Guard` and, without a password, one that refuses requests under any name but this
    machine's, `host`. Else a web page whose name is made to resolve to this machine after it was loaded could send
    requests as if it were this page (DNS rebinding)."""
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    guard = Middleware(Guard, served_files=served_files, bodies=bodies, proxy=proxy and origin_of(proxy))
    if host is None:
        return [guard]
    # "[": some versions of Starlette cut an IPv6 address at its first colon.
    names = ["localhost", "127.0.0.1", host, "[::1]", "["]
    return [guard, Middleware(TrustedHostMiddleware, allowed_hosts=names)]


def check_port(host: str, port: int) -> None:
    """Raises UserError if the address can't be listened on."""
    if not 0 < port < 65536:
        raise UserError(f"port={port} has to lie between 1 and 65535.")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((host, port))
    except OSError as error:
        raise UserError(f"{host}:{port} can't be listened on ({error.strerror}): take another port=.") from None


def _gradio() -> Any:
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import gradio
    except ImportError as error:
        raise UserError(f'the page needs a package: pip install "ldm[ui]" ({error}).') from None
    return gradio
