"""The intake: how many messages are received at once, and who has to give up a place."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from learner_server.intake import Intake, messages_at_once

# Long enough never to pass in a test, and so short that it has passed.
NEVER, AT_ONCE = 600.0, 0.0


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 30.0))


class Sender:
    """Somebody whose message does not come whole before `end`."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._whole = asyncio.Event()
        self.has_place = asyncio.Event()
        self.task = asyncio.create_task(self._send())

    async def _send(self) -> None:
        async with self._intake.place():
            self.has_place.set()
            await self._whole.wait()

    async def end(self) -> None:
        self._whole.set()
        await self.task


async def settle() -> None:
    """Lets every task run until it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_a_message_that_takes_too_long_loses_its_place() -> None:
    async def main() -> None:
        intake = Intake(1, seconds=AT_ONCE)
        with pytest.raises(TimeoutError):
            await Sender(intake).task
        with pytest.raises(TimeoutError):  # in the place of the first
            await Sender(intake).task

    run(main())


def test_newcomers_wait_for_a_place_in_order() -> None:
    async def main() -> None:
        intake = Intake(2, seconds=NEVER, seconds_when_full=NEVER)
        senders = [Sender(intake) for _ in range(4)]
        await settle()
        assert [sender.has_place.is_set() for sender in senders] == [True, True, False, False]
        await senders[1].end()
        await settle()
        assert [sender.has_place.is_set() for sender in senders] == [True, True, True, False]
        for sender in senders:
            await sender.end()

    run(main())


def test_where_others_wait_the_oldest_message_has_less_time() -> None:
    async def main() -> None:
        intake = Intake(2, seconds=NEVER, seconds_when_full=AT_ONCE)
        senders = [Sender(intake) for _ in range(3)]
        await senders[2].has_place.wait()
        with pytest.raises(TimeoutError):
            await senders[0].task
        assert not senders[1].task.done()
        await senders[1].end()
        await senders[2].end()

    run(main())


def test_as_many_make_room_as_wait() -> None:
    async def main() -> None:
        intake = Intake(3, seconds=NEVER, seconds_when_full=AT_ONCE)
        drippers = [Sender(intake) for _ in range(3)]
        await settle()
        others = [Sender(intake) for _ in range(2)]
        for sender in others:
            await sender.has_place.wait()
        assert [isinstance(each.task.exception(), TimeoutError) for each in drippers[:2]] == [True, True]
        assert not drippers[2].task.done()
        for sender in (drippers[2], *others):
            await sender.end()

    run(main())


def test_who_gives_up_in_line_leaves_it() -> None:
    async def main() -> None:
        intake = Intake(1, seconds=NEVER, seconds_when_full=NEVER)
        senders = [Sender(intake) for _ in range(3)]
        await settle()
        senders[1].task.cancel()
        await settle()
        await senders[0].end()
        await senders[2].has_place.wait()
        await senders[2].end()
        newcomer = Sender(intake)
        await settle()
        assert newcomer.has_place.is_set()
        await newcomer.end()

    run(main())


@pytest.mark.parametrize("order", ["place first", "cancelled first"])
def test_no_place_is_lost_on_somebody_who_gives_up_as_it_becomes_free(order: str) -> None:
    async def main() -> None:
        intake = Intake(1, seconds=NEVER, seconds_when_full=NEVER)
        async with intake.place():
            second = Sender(intake)
            await settle()
            if order == "cancelled first":
                second.task.cancel()
        # Neither leaving nor cancelling lets another task run.
        second.task.cancel()
        await settle()
        assert second.task.cancelled()
        third = Sender(intake)
        await third.has_place.wait()
        await third.end()

    run(main())


def test_messages_at_once_take_a_gibibyte_within_reason() -> None:
    assert [messages_at_once(size) for size in (1, 2**20, 2**22, 2**26)] == [1024, 1024, 256, 128]
