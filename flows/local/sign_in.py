"""Signing a person's browser in at the local stack's pages, without a password to type."""

import webbrowser
from html import escape
from urllib.parse import urlsplit

from flows.local.guard import login_link
from flows.local.keys import credential
from flows.local.stack import read
from ptpipeline.errors import NotFound, StackError
from ptpipeline.listeners import find_strangers
from ptpipeline.private import write_private
from ptpipeline.settings import STACK_SECRETS, Settings, read_secrets


def sign_in_link(settings: Settings, page: str) -> str:
    """Return a link that signs a browser in, once, and leads to `page`: mlflow, prefect, or the address of a page.

    A page of a server that is not the local stack's is returned as it is. Raises NotFound if there is no such server,
    StackError if another user has its port: the browser would send that one the cookie of a session.
    """
    pages = {"mlflow": settings.mlflow, "prefect": (settings.prefect or "").removesuffix("/api")}
    addresses = {name: address.rstrip("/") for name, address in pages.items() if address}
    url = addresses.get(page, page)
    name = next((name for name, address in addresses.items() if f"{url}/".startswith(f"{address}/")), None)
    if name is None:
        known = ", ".join(f"{name} ({address})" for name, address in addresses.items()) or "no server: run `ptp up`"
        raise NotFound(f"no page {page!r}: the settings name {known}")
    stack = read(settings.home)
    if stack is None or stack.settings.get(name) != getattr(settings, name):
        return url
    secret = credential(read_secrets(settings.home), name)
    if find_strangers(urlsplit(addresses[name]).port or 0, (settings.home / STACK_SECRETS).stat().st_uid):
        raise StackError(f"{addresses[name]} is another user's server now: `ptp up` starts {name} at another port")
    return login_link(addresses[name], secret, url.removeprefix(addresses[name]) or "/")


def open_page(settings: Settings, page: str) -> bool:
    """Sign the browser in and open the page there; return whether there is a browser. Raises as `sign_in_link`.

    The browser gets a file that only its owner can read: other users see the command lines of all processes.
    """
    path = settings.home / "open.html"
    link = escape(sign_in_link(settings, page))
    html = f'<!doctype html><meta http-equiv="refresh" content="0;url={link}"><a href="{link}">Sign in</a>\n'
    write_private(path, html.encode())
    return webbrowser.open(path.as_uri())
