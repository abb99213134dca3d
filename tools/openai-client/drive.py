"""Drives an edge with the unmodified openai package (a transcription, a synthesis, a realtime turn) and with websockets.

usage: drive.py BASE_URL WAV
Prints one JSON object with the results; exits with a traceback at the first error of the client.
"""

import asyncio
import base64
import io
import json
import sys
import wave

from openai import AsyncOpenAI, BadRequestError
from websockets.asyncio.client import connect


def pcm_24k(path: str) -> bytes:
    """Resamples the recording to 24 kHz, the rate of `audio/pcm` in the Realtime protocol, by linear interpolation."""
    with wave.open(path) as recording:
        rate, samples = recording.getframerate(), recording.readframes(recording.getnframes())
    source = memoryview(samples).cast("h")
    out = io.BytesIO()
    for index in range((len(source) - 1) * 24_000 // rate):
        position = index * rate / 24_000
        left = int(position)
        value = source[left] + (source[left + 1] - source[left]) * (position - left)
        out.write(int(value).to_bytes(2, "little", signed=True))
    return out.getvalue()


async def realtime_turn(client: AsyncOpenAI, path: str) -> dict:
    audio, seen, reply = pcm_24k(path), [], b""
    result: dict = {}
    async with client.realtime.connect(model="meridian") as connection:
        # Manual turns: the client marks the end of the utterance.
        session = {"type": "realtime", "audio": {"input": {"turn_detection": None}}}
        await connection.session.update(session=session)
        for start in range(0, len(audio), 4800):
            chunk = base64.b64encode(audio[start : start + 4800]).decode()
            await connection.input_audio_buffer.append(audio=chunk)
        await connection.input_audio_buffer.commit()
        await connection.response.create()
        async for event in connection:
            seen.append(event.type)
            if event.type == "error":
                raise RuntimeError(event.error.message)
            if event.type == "conversation.item.input_audio_transcription.completed":
                result["transcript"] = event.transcript
            if event.type == "response.output_audio.delta":
                reply += base64.b64decode(event.delta)
            if event.type == "response.output_audio_transcript.done":
                result["reply"] = event.transcript
            if event.type == "response.done":
                result["status"] = event.response.status
                break
    return result | {"reply_seconds": len(reply) / 48_000, "first_event": seen[0]}


async def plain_websocket(base_url: str) -> dict:
    """Uses the same endpoint with the websockets package, which offers compression, pings, and sends fragments."""
    url = base_url.replace("http", "ws", 1) + "/realtime?model=meridian"
    async with connect(url) as socket:
        created = json.loads(await socket.recv())
        await (await socket.ping())
        update = json.dumps({"type": "session.update", "session": {"type": "realtime"}})
        await socket.send([update[:20], update[20:]])
        updated = json.loads(await socket.recv())
        affinity = socket.response.headers["Meridian-Affinity"]
        extensions = len(socket.protocol.extensions)
    # A device that comes back sends its affinity token.
    async with connect(url, additional_headers={"Meridian-Affinity": affinity}) as again:
        again_created = json.loads(await again.recv())
    return {
        "events": [created["type"], updated["type"], again_created["type"]],
        "extensions": extensions,
        "close_codes": [socket.close_code, again.close_code],
    }


async def main() -> None:
    base_url, path = sys.argv[1:3]
    client = AsyncOpenAI(base_url=base_url, api_key="unused", max_retries=0, timeout=20)
    with open(path, "rb") as recording:
        transcription = await client.audio.transcriptions.create(model="meridian", file=recording)
    speech = await client.audio.speech.create(
        model="meridian", voice="meridian", input="timer set for ten minutes", response_format="wav"
    )
    with wave.open(io.BytesIO(speech.content)) as spoken:
        speech_seconds = spoken.getnframes() / spoken.getframerate()
    try:
        await client.audio.transcriptions.create(model="meridian", file=("empty.wav", b""))
        raise RuntimeError("an empty file was transcribed")
    except BadRequestError as error:
        refusal = error.message
    print(
        json.dumps(
            {
                "transcription": transcription.text,
                "speech_seconds": speech_seconds,
                "refusal": refusal,
                "realtime": await realtime_turn(client, path),
                "websocket": await plain_websocket(base_url),
            }
        )
    )


asyncio.run(main())
