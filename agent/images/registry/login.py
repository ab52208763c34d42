"""Logging in at registries: answers a challenge with a header, which is kept for the next request."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing

import httpx
import msgspec
import trio

from ....protocols.bounded.json import check_json
from ....protocols.errors import RegistryFailed
from ..parallel import Turns
from .auth import Challenge, Credentials, parse_challenge
from .http_body import MAX_ANSWER, read_body
from .http_policy import LOGIN_CURE, PassingError, Retry, passes, reason_of, retry_after

Find = Callable[[str], Credentials | None]


class _Token(msgspec.Struct):
    token: str = ""
    access_token: str = ""


class Logins:
    """Headers by registry and scope. Credentials go to their own registry and to the realm it names, encrypted.

    `find` returns the credentials for a host, blocking. The headers serve only callers for whom it is the same.
    """

    def __init__(self, client: httpx.AsyncClient, find: Find, insecure: frozenset[str], policy: Retry) -> None:
        self._client = client
        self._find = find
        self._insecure = insecure
        self._policy = policy
        self._headers: dict[tuple[str, str], str] = {}
        self._turns = Turns()

    def known(self, host: str, scope: str) -> str | None:
        """The header that worked last."""
        return self._headers.get((host, scope))

    async def answer(self, url: httpx.URL, scope: str, challenge: str, refused: str | None) -> None:
        """Find a header for what the registry at `url` asks, another than the one it `refused`.

        Of many requests that are refused at once, one logs in. Raises: RegistryFailed when there is no header.
        """
        host = url.netloc.decode()
        async with self._turns.take(f"{host} {scope}"):
            if self._headers.get((host, scope), refused) == refused:
                self._headers.pop((host, scope), None)
                await self._log_in(url, host, scope, challenge)

    async def _log_in(self, url: httpx.URL, host: str, scope: str, challenge: str) -> None:
        asked = parse_challenge(challenge)
        credentials = await trio.to_thread.run_sync(self._find, host)
        if asked.scheme == "basic":
            if credentials is None:
                raise RegistryFailed(f"{host} wants a login; {LOGIN_CURE}")
            if credentials.is_identity_token:
                raise RegistryFailed(f"{host} wants a password, and its login here is an identity token")
            self._headers[host, scope] = credentials.basic
        else:
            self._headers[host, scope] = f"Bearer {await self._token(url, asked, scope, credentials)}"

    async def _token(self, url: httpx.URL, asked: Challenge, scope: str, credentials: Credentials | None) -> str:
        realm = self._realm(url, asked)
        parameters = {"scope": _wider(asked.parameters.get("scope", scope), scope)}
        if service := asked.parameters.get("service"):
            parameters["service"] = service
        request = self._token_request(realm, parameters, credentials)

        async def attempt() -> tuple[int, bytes]:
            try:
                response = await self._client.send(request, stream=True)
                async with aclosing(response):
                    body = await read_body(response, MAX_ANSWER)
            except httpx.TransportError as error:
                raise PassingError(f"{realm.host} cannot be reached to log in: {str(error)[:200]}") from None
            if passes(response.status_code):
                reason = reason_of(body) or "no reason given"
                raise PassingError(
                    f"{realm.host} answers {response.status_code} to a login ({reason})", retry_after(response)
                )
            return response.status_code, body

        status, body = await self._policy.run(attempt)
        if status != 200:
            reason = f"{status}: {reason_of(body)}" if reason_of(body) else str(status)
            raise RegistryFailed(f"{realm.host} refuses the login for {url.netloc.decode()} ({reason})")
        try:
            check_json(body)
            answer = msgspec.json.decode(body, type=_Token)
        except (msgspec.MsgspecError, ValueError):
            raise RegistryFailed(f"{realm.host} answers a login with something else than a token") from None
        token = answer.token or answer.access_token
        if not token or not token.isascii() or not token.isprintable():
            raise RegistryFailed(f"{realm.host} gives no token")
        return token

    def _token_request(
        self, realm: httpx.URL, parameters: dict[str, str], credentials: Credentials | None
    ) -> httpx.Request:
        """Ask with a name and a password, or exchange an identity token (distribution's oauth.md)."""
        if credentials is None or not credentials.is_identity_token:
            headers = {"authorization": credentials.basic} if credentials else {}
            return self._client.build_request("GET", realm.copy_merge_params(parameters), headers=headers)
        grant = {"grant_type": "refresh_token", "refresh_token": credentials.password, "client_id": "twinshare"}
        return self._client.build_request("POST", realm, data={**grant, **parameters})

    def _realm(self, url: httpx.URL, asked: Challenge) -> httpx.URL:
        try:
            realm = httpx.URL(asked.parameters.get("realm", ""))
        except httpx.InvalidURL:
            realm = httpx.URL("")
        # Where the registry itself is spoken to in the clear, so may be its own realm; nothing else may.
        plain = realm.netloc.decode() in self._insecure
        if realm.scheme != "https" and not (realm.scheme == "http" and plain):
            raise RegistryFailed(f"{url.host} sends the login to a place without encryption")
        return realm


def _wider(asked: str, own: str) -> str:
    """A look before a write is asked to log in for reading alone: one token for both is asked for at once."""
    (resource, _, some), (ours, _, more) = asked.rpartition(":"), own.rpartition(":")
    return own if resource == ours and set(some.split(",")) <= set(more.split(",")) else asked
