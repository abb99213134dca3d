"""Drives the Wyoming listener of a stack with the unmodified wyoming package, request by request as Home Assistant does.

usage: drive.py URI FOLDER
FOLDER holds stop.wav. The speech that comes back is written there: said.wav, and first.wav and second.wav for a text that was sent in parts.
Prints one JSON object with the results; exits with a traceback at the first answer that the package does not take.
"""

import asyncio
import json
import pathlib
import sys
import wave

from wyoming.asr import Transcribe, Transcript
from wyoming.audio import AudioChunk, AudioStart, AudioStop, wav_to_chunks
from wyoming.client import AsyncClient
from wyoming.error import Error
from wyoming.event import Event
from wyoming.handle import Handled, NotHandled
from wyoming.info import Describe, Info
from wyoming.intent import Intent, IntentsStart, IntentsStop, NotRecognized
from wyoming.ping import Ping, Pong
from wyoming.tts import (
    Synthesize,
    SynthesizeChunk,
    SynthesizeStart,
    SynthesizeStop,
    SynthesizeStopped,
    SynthesizeVoice,
)

URI, FOLDER = sys.argv[1], pathlib.Path(sys.argv[2])


def client() -> AsyncClient:
    return AsyncClient.from_uri(URI, connect_timeout=10, read_timeout=20)


async def answer(connection: AsyncClient) -> Event:
    event = await connection.read_event()
    if event is None:
        raise RuntimeError("the stack hung up")
    return event


async def describe() -> dict:
    async with client() as connection:
        await connection.write_event(Describe().event())
        info = Info.from_event(await answer(connection))
    asr, tts, intent, handle = info.asr[0], info.tts[0], info.intent[0], info.handle[0]
    return {
        "languages": [
            asr.models[0].languages,
            tts.voices[0].languages,
            intent.models[0].languages,
            handle.models[0].languages,
        ],
        "installed": [asr.installed, asr.models[0].installed, tts.installed, tts.voices[0].installed],
        "requires_external_vad": asr.requires_external_vad,
        "supports_synthesize_streaming": tts.supports_synthesize_streaming,
        "voice": tts.voices[0].name,
    }


async def ping() -> str:
    async with client() as connection:
        await connection.write_event(Ping(text="here").event())
        return Pong.from_event(await answer(connection)).text


async def transcribe() -> str:
    async with client() as connection:
        await connection.write_event(Transcribe(language="en", transcript_names=["kitchen light"]).event())
        with wave.open(str(FOLDER / "stop.wav"), "rb") as recording:
            for chunk in wav_to_chunks(recording, 1024, start_event=True, stop_event=True):
                await connection.write_event(chunk.event())
        return Transcript.from_event(await answer(connection)).text


async def listen(connection: AsyncClient, path: pathlib.Path) -> int:
    """Writes the audio up to the next `audio-stop` into a file. Returns the number of chunks."""
    start = AudioStart.from_event(await answer(connection))
    chunks, audio = 0, b""
    while True:
        event = await answer(connection)
        if AudioStop.is_type(event.type):
            break
        chunk = AudioChunk.from_event(event)
        if (chunk.rate, chunk.width, chunk.channels) != (start.rate, start.width, start.channels):
            raise RuntimeError("a chunk has another format than its start")
        chunks, audio = chunks + 1, audio + chunk.audio
    with wave.open(str(path), "wb") as said:
        said.setframerate(start.rate)
        said.setsampwidth(start.width)
        said.setnchannels(start.channels)
        said.writeframes(audio)
    return chunks


async def synthesize() -> int:
    async with client() as connection:
        voice = SynthesizeVoice(name="meridian")
        await connection.write_event(Synthesize(text="The timer is set.", voice=voice).event())
        return await listen(connection, FOLDER / "said.wav")


async def stream() -> dict:
    """Sends a text in parts, and the whole text too, as Home Assistant does for servers that take no parts."""
    text = "It is noon. The light is on."
    async with client() as connection:
        await connection.write_event(SynthesizeStart(voice=SynthesizeVoice(name="meridian")).event())
        for part in ("It is ", "noon. The"):
            await connection.write_event(SynthesizeChunk(text=part).event())
        # The first sentence is spoken before the text is whole.
        first = await listen(connection, FOLDER / "first.wav")
        await connection.write_event(SynthesizeChunk(text=" light is on.").event())
        await connection.write_event(Synthesize(text=text).event())
        await connection.write_event(SynthesizeStop().event())
        second = await listen(connection, FOLDER / "second.wav")
        return {"chunks": [first > 0, second > 0], "stopped": SynthesizeStopped.is_type((await answer(connection)).type)}


async def ask(text: str) -> list:
    async with client() as connection:
        context = {"conversation_id": "01J", "device_id": "hall"}
        await connection.write_event(Transcript(text, context=context, language="en").event())
        event = await answer(connection)
        if IntentsStart.is_type(event.type):
            intents = []
            while not IntentsStop.is_type((event := await answer(connection)).type):
                intents.append(Intent.from_event(event))
        elif Intent.is_type(event.type):
            intents = [Intent.from_event(event)]
        else:
            for kind in (Handled, NotHandled, NotRecognized):
                if kind.is_type(event.type):
                    said = kind.from_event(event)
                    return [kind.__name__, said.text, said.context == context]
            raise RuntimeError(f"unexpected {event}")
        slots = lambda intent: {entity.name: entity.value for entity in intent.entities}
        return [[intent.name, slots(intent), intent.text] for intent in intents]


async def refused() -> list:
    """The stack understands English; it says so, and the connection goes on."""
    async with client() as connection:
        await connection.write_event(Transcribe(language="de").event())
        error = Error.from_event(await answer(connection))
        await connection.write_event(Ping().event())
        return [error.code, error.text, Pong.is_type((await answer(connection)).type)]


async def main() -> None:
    print(
        json.dumps(
            {
                "info": await describe(),
                "pong": await ping(),
                "transcript": await transcribe(),
                "said_chunks": await synthesize(),
                "streamed": await stream(),
                "light": await ask("turn on the kitchen light"),
                "lights": await ask("turn off the lights in the kitchen and the hall"),
                "timer": await ask("set a timer for ten minutes"),
                "time": await ask("what time is it"),
                "alarm": await ask("wake me up at seven"),
                "nonsense": await ask("purple monkeys dishwasher"),
                "german": await refused(),
            }
        )
    )


asyncio.run(main())
