"""A taskset of one turn, written against the API of verifiers alone."""

import verifiers.v1 as vf

__all__ = ["LettersTaskset"]


class LetterData(vf.TaskData):
    letter: str


class LettersConfig(vf.TasksetConfig):
    letters: str = "abcdefghijklmnop"


class LetterTask(vf.Task[LetterData, vf.State, vf.TaskConfig]):
    @vf.reward
    async def lowercase(self, trace: vf.Trace) -> float:
        text = trace.last_reply
        return sum(letter.islower() for letter in text) / max(1, len(text))

    @vf.reward(weight=0.5)
    async def letter(self, trace: vf.Trace) -> float:
        return float(self.data.letter in trace.last_reply)


class LettersTaskset(vf.Taskset[LetterTask, LettersConfig]):
    def load(self):
        for letter in self.config.letters:
            yield LetterTask(LetterData(name=letter, prompt=f"Write {letter}.", letter=letter), self.config.task)
