"""Receives the messages of the Learner's calls: within limits, counted, and with a status for those that are none."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError

from impala.errors import InvalidMessage
from learner_server.intake import Intake


class Messages(grpc.aio.ServerInterceptor):
    """Reads messages, counts their bytes, and counts calls whose message no handler can read.

    One over the size limit gRPC itself answers, with RESOURCE_EXHAUSTED; the one trace that it leaves here is a call that ends
    without its message, and so does a call whose caller is gone in mid-message: both count as "incomplete:message". Bytes that are
    not the message at all gRPC would answer with UNKNOWN and a traceback in the log; they are INVALID_ARGUMENT like every other
    malformed message. One that does not come whole in time is UNAVAILABLE.

    Args:
        service: whose calls these are.
        count: called with names of refusals.
        count_bytes: called with the size of each message that came.
        intake: where messages have a place while they are received.
    """

    def __init__(
        self, service: str, count: Callable[[list[str]], None], count_bytes: Callable[[int], None], intake: Intake
    ) -> None:
        self._prefix = f"/{service}/"
        self._count = count
        self._count_bytes = count_bytes
        self._intake = intake

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wraps the handler of one call, and looks when the call's task ends whether its message came."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith(self._prefix):
            return handler
        was_accounted_for = [False]
        task = asyncio.current_task()
        assert task is not None
        task.add_done_callback(lambda _: was_accounted_for[0] or self._count(["incomplete:message"]))

        async def refuse(status: grpc.StatusCode, context: Any, error: str) -> NoReturn:
            was_accounted_for[0] = True
            self._count([f"{status.name.lower()}:message"])
            await context.abort(status, error)
            raise AssertionError("abort raises")

        async def answer(_: Any, context: Any) -> Any:
            try:
                message = await self._intake.receive(context)
            except TimeoutError:
                await refuse(grpc.StatusCode.UNAVAILABLE, context, "message: did not come whole in time")
            except InvalidMessage as error:
                await refuse(grpc.StatusCode.INVALID_ARGUMENT, context, str(error))
            was_accounted_for[0] = True
            size = len(message)
            self._count_bytes(size)
            try:
                # Kept by the handler alone, which lets go of it when it has to wait.
                call = handler.unary_unary(handler.request_deserializer(message), context)  # type: ignore[misc]
            except DecodeError:
                other = InvalidMessage("message", f"the message of {method}", f"{size} bytes that are not one")
                await refuse(grpc.StatusCode.INVALID_ARGUMENT, context, str(other))
            del message  # the answer may have to wait, and others wait too
            return await call

        # As of a stream, though one message comes: the handler then runs before that is received. No deserialiser: it gets bytes.
        return grpc.stream_unary_rpc_method_handler(answer, response_serializer=handler.response_serializer)
