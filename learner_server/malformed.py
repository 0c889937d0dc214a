"""Health checks and reflection, whose servicers are gRPC's own: what they cannot read or do is refused, not stumbled over."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from impala.errors import InvalidMessage
from learner_server.intake import Intake


class RefuseMalformed(grpc.aio.ServerInterceptor):
    """Answers bytes that are not a method's message with INVALID_ARGUMENT, and a method that is not there with UNIMPLEMENTED.

    gRPC would write a traceback to the log each time, and anybody may ask for the learner's health, as often as he likes. Nor would
    it mind how many questions are on their way in, or how large they are.

    Args:
        intake: where messages of calls with a single one have a place while they are received.
    """

    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wraps the handler of one call."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_deserializer is None:
            return handler
        read, serializer = _reading(handler.request_deserializer), handler.response_serializer
        # As of streams, though one message comes: the handler then runs before that is received. No deserialiser: it gets bytes.
        if handler.unary_unary is not None:
            return grpc.stream_unary_rpc_method_handler(self._of_one(handler.unary_unary, read), None, serializer)
        if handler.unary_stream is not None:
            return grpc.stream_stream_rpc_method_handler(self._of_one(handler.unary_stream, read), None, serializer)
        if handler.stream_stream is not None:
            return grpc.stream_stream_rpc_method_handler(_of_several(handler.stream_stream), read, serializer)
        return handler

    def _of_one(self, method: Callable[..., Any], read: Callable[[bytes], Any]) -> Callable[[Any, Any], Awaitable[Any]]:
        async def answer(_: Any, context: Any) -> Any:
            try:
                request = read(await self._intake.receive(context))
            except TimeoutError:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "message: did not come whole in time")
            except InvalidMessage as error:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            await _refuse_bytes(request, context)
            try:
                return await method(request, context)
            except NotImplementedError:  # Health.List, which gRPC declares and leaves undone, and Watch where probes ask
                await context.abort(grpc.StatusCode.UNIMPLEMENTED, "the method is not implemented")

        return answer


def _reading(deserializer: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Returns a deserialiser that hands on what it cannot read, as bytes: it has no call that it could end."""

    def read(data: bytes) -> Any:
        try:
            return deserializer(data)
        except DecodeError:
            return data

    return read


def _of_several(method: Callable[..., Any]) -> Callable[[Any, Any], AsyncIterator[Any]]:
    async def answer(requests: Any, context: Any) -> AsyncIterator[Any]:
        async def checked() -> AsyncIterator[Any]:
            async for request in requests:
                await _refuse_bytes(request, context)
                yield request

        async for response in method(checked(), context):
            yield response

    return answer


async def _refuse_bytes(request: Any, context: Any) -> None:
    if isinstance(request, bytes):
        error = InvalidMessage("message", "the method's", f"{len(request)} bytes that are not one")
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
