"""Calls a stack over gRPC knowing its address alone: reflection names the services and their messages. Watches its health meanwhile.

usage: drive.py ADDRESS WAV
Prints one JSON object with the results, and before it a line "watching" when the watch over the health has its first answer. Waits for a line
on its standard input before it reads the last answer of the watch.
"""

import json
import pathlib
import sys

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

ADDRESS, WAV = sys.argv[1], pathlib.Path(sys.argv[2])
TIMEOUT_S = 20


def call(channel: grpc.Channel, method, request, is_stream: bool):
    make = channel.unary_stream if is_stream else channel.unary_unary
    answer = message_factory.GetMessageClass(method.output_type)
    path = f"/{method.containing_service.full_name}/{method.name}"
    invoke = make(path, request_serializer=lambda it: it.SerializeToString(), response_deserializer=answer.FromString)
    return invoke(request, timeout=TIMEOUT_S)


with grpc.insecure_channel(ADDRESS) as channel:
    database = ProtoReflectionDescriptorDatabase(channel)
    services = sorted(database.get_services())
    voice = DescriptorPool(database).FindServiceByName("meridian.voice.v1.Voice")
    methods = {method.name: method for method in voice.methods}

    Transcribe = message_factory.GetMessageClass(methods["Transcribe"].input_type)
    heard = call(channel, methods["Transcribe"], Transcribe(wav=WAV.read_bytes()), is_stream=False)
    Synthesize = message_factory.GetMessageClass(methods["Synthesize"].input_type)
    text = Synthesize(text="It is noon. The light is on.")
    sentences = [len(audio.pcm) > 0 for audio in call(channel, methods["Synthesize"], text, is_stream=True)]

    health = health_pb2_grpc.HealthStub(channel)
    name = health_pb2.HealthCheckResponse.ServingStatus.Name
    check = lambda service: name(health.Check(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT_S).status)
    statuses = [check(""), check("meridian.voice.v1.Voice")]
    try:
        check("meridian.voice.v2.Voice")
    except grpc.RpcError as error:
        statuses.append(error.code().name)

    watch = health.Watch(health_pb2.HealthCheckRequest(service=""), timeout=TIMEOUT_S)
    watched = [name(next(watch).status)]
    print("watching", flush=True)
    sys.stdin.readline()
    watched += [name(answer.status) for answer in watch]

print(
    json.dumps(
        {"services": services, "text": heard.text, "sentences": sentences, "statuses": statuses, "watched": watched}
    )
)
