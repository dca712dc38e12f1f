"""Turns a request body into accepted spans and a response, however the request was read.

In: a route, a parsed request head and the whole body. Out: a response in the route's format
(docs/api.md). The valid events of a request are accepted together or not at all, and refusals are
counted.
"""

import asyncio
from collections.abc import Sequence
from http import HTTPStatus

from sidecar.credentials import ACCOUNT_NAMES, Account, AccountRefused, Accounts
from sidecar.drain.lane import Lane
from sidecar.http.messages import Request, Response
from sidecar.listener.refusals import Limits, Refusal, no_room, of_account, stopping
from sidecar.listener.routes import Route, refused
from sidecar.queue.admission import Admission, QueueFull, RequestTooLarge
from sidecar.spans.decode import Decoded, MalformedBody, Rejection
from sidecar.telemetry.metrics import IntakeMetrics


class Ingest:
    """Decodes bodies and admits their spans; while `stopping` is set, refuses requests with 503."""

    def __init__(
        self,
        admission: Admission,
        metrics: IntakeMetrics,
        lanes: Sequence[Lane],
        limits: Limits,
        accounts: Accounts,
    ) -> None:
        self._admission = admission
        self.metrics = metrics
        self.limits = limits
        self._lanes = lanes
        self._accounts = accounts
        self._own, self._by_request = accounts.own, accounts.by_request
        # Headers that name an account or a credential.
        self._names = ACCOUNT_NAMES.union(*(lane.relayed for lane in lanes))
        self._loop = asyncio.get_running_loop()
        self.stopping = False
        # Whether a response has to wait for the disk or for the drains; if so, use `respond`.
        self.must_wait = admission.must_wait

    def respond_now(self, route: Route, request: Request, body: bytes) -> Response:
        """Accept the spans of `body`; call only when `must_wait` returns False."""
        account = self._own
        # Almost always: the request names neither an account nor a credential.
        plain = not self._by_request and self._names.isdisjoint(request.headers)
        try:
            if not plain:
                account = self._account(route, request)
            decoded = self._decoded(route, request, body, account)
            lanes = -1
            if decoded.spans:
                lanes = self._admission.take(decoded.spans)
                if not plain:
                    self._accept(account, route, request)
        except Refusal as error:
            return self.refuse(route, request, error, len(body))
        except (RequestTooLarge, QueueFull) as error:
            self._not_accepted(account, route, request, error)
            return self.refuse(route, request, error, len(body))
        return self._accepted(route, request, decoded, lanes)

    async def respond(self, route: Route, request: Request, body: bytes) -> Response:
        """Like `respond_now`, once the events are on disk (with a spool) and the drains keep up."""
        size = len(body)
        account = self._own
        plain = not self._by_request and self._names.isdisjoint(request.headers)
        try:
            if not plain:
                account = self._account(route, request)
            decoded = self._decoded(route, request, body, account)
            del body
            lanes = -1
            if decoded.spans:
                lanes = await self._admission.take_durably(decoded.spans)
                if not plain:
                    self._accept(account, route, request)
                await self._admission.yield_to_drain()
        except Refusal as error:
            return self.refuse(route, request, error, size)
        except (RequestTooLarge, QueueFull) as error:
            self._not_accepted(account, route, request, error)
            return self.refuse(route, request, error, size)
        return self._accepted(route, request, decoded, lanes)

    def refuse(
        self,
        route: Route,
        request: Request,
        error: Refusal | MalformedBody | RequestTooLarge | QueueFull,
        size: int = 0,
    ) -> Response:
        """Count a request whose body, of `size` bytes, was not accepted; returns its response."""
        if isinstance(error, MalformedBody):
            return self._accepted(route, request, _malformed(error))
        if isinstance(error, RequestTooLarge):
            text = (
                f"the body ({size} bytes) is too large even for an empty lane "
                f"({self._admission.limit} bytes): send fewer events per request, or raise "
                "queue.max_bytes and, with a spool, spool.max_bytes"
            )
            error = Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, text, "too_large")
        elif isinstance(error, QueueFull):
            error = no_room()
        self.metrics.refused(error.reason, error.status, self._loop.time())
        return refused(error, route.error_key)

    def _account(self, route: Route, request: Request) -> Account:
        if not route.has_accounts:
            return self._own
        try:
            return self._accounts.of_request(request.headers)
        except AccountRefused as error:
            raise of_account(error) from None

    def _decoded(self, route: Route, request: Request, body: bytes, account: Account) -> Decoded:
        """The spans of a request. If there are any, its account is registered."""
        if self.stopping:
            raise stopping()
        try:
            decoded = route.decode(request, body, self._loop.time(), account.number)
        except MalformedBody as error:
            return _malformed(error)
        if account is not self._own and decoded.spans:
            self._accounts.register(account)
        return decoded

    def _accept(self, account: Account, route: Route, request: Request) -> None:
        """Spans of a request were accepted: use the credentials that came with it."""
        self._accounts.accept(account)
        number = account.number if route.has_accounts else None
        for lane in self._lanes:
            lane.offer(request.headers, number)

    def _not_accepted(
        self, account: Account, route: Route, request: Request, error: Exception
    ) -> None:
        """No span of a request was accepted: it changes no credential.

        Except for one that makes room: where writes wait for a key, every request that has it may
        be refused because of them.
        """
        number = account.number if route.has_accounts else None
        waiting = [lane for lane in self._lanes if lane.waits_for_key(number)]
        if waiting and isinstance(error, QueueFull):
            self._accounts.accept(account)
        else:
            self._accounts.withdraw(account)
            return
        for lane in waiting:
            lane.offer(request.headers, number)

    def _accepted(
        self, route: Route, request: Request, decoded: Decoded, lanes: int = -1
    ) -> Response:
        """The response. `lanes` has the bits of those that take the spans, -1 for all."""
        if self.metrics.refusing and decoded.spans:
            self.metrics.accepted()
        for rejection in decoded.rejected:
            self.metrics.event_rejected(rejection, self._loop.time())
        if lanes != -1:
            count = len(decoded.spans)
            full = {lane.name: count for lane in self._lanes if not lanes & lane.bit}
            return route.respond(request, decoded, full)
        return route.respond(request, decoded)


def _malformed(error: MalformedBody) -> Decoded:
    return Decoded([], [Rejection(0, None, str(error), "malformed")])
