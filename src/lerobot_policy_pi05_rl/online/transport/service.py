"""The service of ``learner.proto`` as gRPC sees it: what ``grpc_tools`` would write, of the messages' descriptor."""

from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

from .learner_pb2 import DESCRIPTOR

SERVICE = DESCRIPTOR.services_by_name["Learner"]


class LearnerStub:
    """An attribute for each method: ``stub.Join(hello)``."""

    def __init__(self, channel: grpc.Channel):
        for method in SERVICE.methods:
            open_call = getattr(channel, _kind(method))
            call = open_call(
                f"/{SERVICE.full_name}/{method.name}",
                request_serializer=GetMessageClass(method.input_type).SerializeToString,
                response_deserializer=GetMessageClass(method.output_type).FromString,
            )
            setattr(self, method.name, call)


def serve(servicer: Any, server: grpc.Server) -> None:
    """Let the server answer with the servicer's methods, which have the names of the service's."""
    handlers = {}
    for method in SERVICE.methods:
        make_handler = getattr(grpc, f"{_kind(method)}_rpc_method_handler")
        handlers[method.name] = make_handler(
            getattr(servicer, method.name),
            request_deserializer=GetMessageClass(method.input_type).FromString,
            response_serializer=GetMessageClass(method.output_type).SerializeToString,
        )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE.full_name, handlers),))


def _kind(method: MethodDescriptor) -> str:
    """gRPC's name of a method whose request, or answer, is one message or a stream of them."""
    ends = (method.client_streaming, method.server_streaming)
    return "_".join("stream" if streams else "unary" for streams in ends)
