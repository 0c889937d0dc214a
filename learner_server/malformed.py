"""Health checks and reflection, whose servicers are gRPC's own: what they cannot read or do is refused, not stumbled over."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from impala.errors import InvalidMessage


class RefuseMalformed(grpc.aio.ServerInterceptor):
    """Answers bytes that are not a method's message with INVALID_ARGUMENT, and a method that is not there with UNIMPLEMENTED.

    gRPC would write a traceback to the log each time, and anybody may ask for the learner's health, as often as he likes.
    """

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
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(_of_one(handler.unary_unary), read, serializer)
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(_of_one(handler.unary_stream), read, serializer)
        if handler.stream_stream is not None:
            return grpc.stream_stream_rpc_method_handler(_of_several(handler.stream_stream), read, serializer)
        return handler


def _reading(deserializer: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Returns a deserialiser that hands on what it cannot read, as bytes: it has no call that it could end."""

    def read(data: bytes) -> Any:
        try:
            return deserializer(data)
        except DecodeError:
            return data

    return read


def _of_one(method: Callable[..., Any]) -> Callable[[Any, Any], Awaitable[Any]]:
    async def answer(request: Any, context: Any) -> Any:
        await _refuse_bytes(request, context)
        try:
            return await method(request, context)
        except NotImplementedError:  # Health.List, which gRPC declares and leaves undone
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "the method is not implemented")

    return answer


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
