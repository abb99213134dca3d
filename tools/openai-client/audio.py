"""Drives the audio endpoints and the list of models with the unmodified openai package, in every format. soundfile decodes the speech.

usage: audio.py BASE_URL FOLDER
FOLDER holds stop.wav ("stop") and long.wav ("stop", a long pause, "read the menu"). Speech that is kept without loss is written there as WAV files.
Prints one JSON object with the results; exits with a traceback at the first error of the client.
"""

import asyncio
import base64
import io
import json
import pathlib
import sys

import soundfile
from openai import APIError, AsyncOpenAI, BadRequestError, NotFoundError

BASE_URL, FOLDER = sys.argv[1], pathlib.Path(sys.argv[2])
TEXT = "It is noon. The light is on."


async def transcribed(client: AsyncOpenAI) -> dict:
    long = FOLDER / "long.wav"
    create = client.audio.transcriptions.create
    result = {}
    for kind in ("json", "text", "verbose_json", "srt", "vtt"):
        answer = await create(model="meridian", file=long, response_format=kind)
        result[kind] = answer if isinstance(answer, str) else answer.text
    verbose = await create(
        model="meridian", file=long, response_format="verbose_json", timestamp_granularities=["segment"]
    )
    result["segments"] = [[segment.text, round(segment.start), round(segment.end)] for segment in verbose.segments]
    result["duration"] = round(float(verbose.duration))
    deltas = []
    async for event in await create(model="meridian", file=long, stream=True):
        if event.type == "transcript.text.delta":
            deltas.append(event.delta)
        else:
            result["streamed"] = [event.type, event.text]
    result["deltas"] = deltas
    try:
        await create(model="meridian", file=long, response_format="diarized_json")
    except BadRequestError as error:
        result["refused"] = error.message
    return result


async def failed_in_the_middle(client: AsyncOpenAI) -> str:
    """The first words come, then the recognizer fails: the package raises the error of the stream."""
    events = await client.audio.transcriptions.create(model="meridian", file=FOLDER / "half.wav", stream=True)
    seen = []
    try:
        async for event in events:
            seen.append(event.type)
    except APIError as error:
        return f"{seen[0]}, then: {error.message}"
    raise RuntimeError("the stream ended as if nothing had happened")


async def spoken(client: AsyncOpenAI) -> dict:
    create = client.audio.speech.create
    result: dict = {"seconds": {}}
    for kind in ("wav", "flac", "opus", "pcm"):
        answer = await create(model="meridian", voice="meridian", input=TEXT, response_format=kind)
        form = {"format": "RAW", "subtype": "PCM_16", "channels": 1, "samplerate": 24_000} if kind == "pcm" else {}
        samples, rate = soundfile.read(io.BytesIO(answer.content), dtype="int16", **form)
        if rate not in (24_000, 48_000) or samples.ndim != 1:
            raise RuntimeError(f"{kind} has {rate} Hz and {samples.shape}")
        result["seconds"][kind] = round(len(samples) / rate, 2)
        if kind != "opus":
            soundfile.write(FOLDER / f"{kind}-said.wav", samples, rate, subtype="PCM_16")
    async with client.audio.speech.with_streaming_response.create(
        model="meridian", voice="meridian", input=TEXT, response_format="opus"
    ) as answer:
        streamed = b"".join([piece async for piece in answer.iter_bytes()])
    info = soundfile.info(io.BytesIO(streamed))
    result["opus"] = [info.format, info.subtype, info.channels]
    answer = await create(
        model="meridian", voice="meridian", input=TEXT, response_format="pcm", stream_format="sse"
    )
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    result["events"] = [event["type"] for event in events]
    audio = b"".join(base64.b64decode(event.get("audio", "")) for event in events)
    result["event_seconds"] = round(len(audio) / 48_000, 2)
    result["refused"] = []
    for form in ({}, {"response_format": "mp3"}, {"response_format": "aac"}):
        try:
            await create(model="meridian", voice="meridian", input=TEXT, **form)
        except BadRequestError as error:
            result["refused"].append(error.message)
    return result


async def heard_again(client: AsyncOpenAI) -> dict:
    """Recordings in Opus by another writer. Opus is lossy, so it holds silence: the words of the scripted recognizer would not survive."""
    quiet = io.BytesIO()
    soundfile.write(quiet, [[0.0, 0.0]] * 96_000, 48_000, format="OGG", subtype="OPUS")
    vorbis = io.BytesIO()
    soundfile.write(vorbis, [0.0] * 16_000, 16_000, format="OGG", subtype="VORBIS")
    create = client.audio.transcriptions.create
    verbose = await create(model="meridian", file=("quiet.ogg", quiet.getvalue()), response_format="verbose_json")
    try:
        await create(model="meridian", file=("vorbis.ogg", vorbis.getvalue()))
    except BadRequestError as error:
        refused = error.message
    return {"text": verbose.text, "duration": float(verbose.duration), "refused": refused}


async def models(client: AsyncOpenAI) -> dict:
    listed = [model.id async for model in client.models.list()]
    retrieved = await client.models.retrieve(listed[0])
    try:
        await client.models.retrieve("gpt-17")
    except NotFoundError as error:
        missing = error.code
    return {"listed": listed, "retrieved": retrieved.id, "missing": missing}


async def main() -> None:
    client = AsyncOpenAI(base_url=BASE_URL, api_key="unused", max_retries=0, timeout=20)
    print(
        json.dumps(
            {
                "transcribed": await transcribed(client),
                "failed": await failed_in_the_middle(client),
                "spoken": await spoken(client),
                "opus": await heard_again(client),
                "models": await models(client),
            }
        )
    )


asyncio.run(main())
