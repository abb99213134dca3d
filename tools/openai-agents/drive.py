"""Runs an agent of the unmodified openai-agents package against Meridian, with the package's defaults and two tools.

usage: drive.py URL RECORDINGS
URL is the WebSocket's, ws://…/v1/realtime; RECORDINGS holds stop.wav, pizza.wav and menu.wav at 24 kHz.
Prints one JSON object; exits with a traceback at the first error that the package reports.
"""

import asyncio
import json
import sys
import wave
from pathlib import Path

from agents import function_tool, set_tracing_disabled
from agents.realtime import RealtimeAgent, RealtimeRunner

set_tracing_disabled(True)
ordered: list[str] = []


@function_tool
def order_pizza(size: str) -> str:
    """Orders a pizza.

    Args:
        size: how large it shall be
    """
    ordered.append(size)
    return "it comes at nine"


@function_tool
def read_menu() -> str:
    """Reads the menu."""
    # Takes a minute to say, so that there is time to interrupt it.
    return "one two three four five six seven " * 28


def sound(folder: Path, name: str) -> bytes:
    """A recording with the silence around it by which the server finds its beginning and its end."""
    with wave.open(str(folder / name)) as recording:
        return bytes(24_000) + recording.readframes(recording.getnframes()) + bytes(48_000)


def text_of(response: dict) -> str:
    return response["output"][0]["content"][0]["transcript"]


async def main() -> None:
    url, folder = sys.argv[1], Path(sys.argv[2])
    agent = RealtimeAgent(name="assistant", instructions="Be kind.", tools=[order_pizza, read_menu])
    runner = RealtimeRunner(agent)
    seen: dict[str, int] = {}
    responses: list[dict] = []
    truncated: list[str] = []
    audio = 0

    async with await runner.run(model_config={"url": url, "api_key": "unused"}) as session:
        events = aiter(session)

        async def step() -> str:
            """Takes one event: what the server sent by the server's name, others by the package's."""
            nonlocal audio
            event = await asyncio.wait_for(anext(events), 60)
            seen[event.type] = seen.get(event.type, 0) + 1
            if event.type == "error":
                raise RuntimeError(f"{event.error}")
            if event.type == "raw_model_event" and event.data.type in ("error", "exception"):
                raise RuntimeError(f"{event.data}")
            if event.type == "raw_model_event" and event.data.type == "raw_server_event":
                said = event.data.data
                if said["type"] == "response.done":
                    responses.append(said["response"])
                if said["type"] == "conversation.item.truncated":
                    truncated.append(said["item_id"])
                return said["type"]
            if event.type == "audio":
                audio += len(event.audio.data)
            return event.type

        async def until(kind: str) -> None:
            while await step() != kind:
                pass

        async def interrupted_at(kind: str) -> tuple[dict, dict]:
            """The menu's reading, and the answer to what interrupts it at this event."""
            await session.send_audio(sound(folder, "menu.wav"))
            await until("tool_end")
            await until(kind)
            before = len(responses)
            await session.send_audio(sound(folder, "stop.wav"))
            if kind == "audio":
                # Of an answer without a sound the package has nothing to stop.
                await until("audio_interrupted")
            while len(responses) < before + 2:
                await step()
            return responses[before], responses[before + 1]

        # Spoken turns: first a command of the assistant's own skills, then one of the tool.
        await session.send_audio(sound(folder, "stop.wav"))
        await until("audio_end")
        await session.send_audio(sound(folder, "pizza.wav"))
        await until("tool_end")
        await until("audio_end")
        # Spoken, and interrupted by voice: when the first sound of the answer is there, and when it is still being made. What
        # interrupts is answered.
        played, to_play = await interrupted_at("audio")
        while played["output"][0]["id"] not in truncated:
            await step()
        made, to_make = await interrupted_at("response.output_audio_transcript.delta")
        # Written, and interrupted.
        await session.send_message("turn on the hall lights")
        await until("audio_end")
        await session.interrupt()
        await session.send_message("order a small pizza")
        await until("tool_end")
        await until("audio_end")
        history = [item.model_dump() for item in session._history]
    print(
        json.dumps(
            {
                "ordered": ordered,
                "audio_bytes": audio,
                "interrupted": {
                    # The package's own event came, and the item was shortened, or this would not be reached.
                    "played": {"told": True, "truncated": True, "answer": text_of(to_play)},
                    "made": {
                        "status": made["status"],
                        "reason": made["status_details"]["reason"],
                        "answer": text_of(to_make),
                    },
                },
                "seen": seen,
                "items": len(history),
            }
        )
    )


asyncio.run(main())
