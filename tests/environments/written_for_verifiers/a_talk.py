"""An environment of several turns, written against the API of verifiers alone."""

import random

import verifiers.v1 as vf

__all__ = ["TalkEnv", "TalkTaskset"]


class TalkData(vf.TaskData):
    wanted: str


class TalkTask(vf.Task[TalkData, vf.State, vf.TaskConfig]):
    pass


class TalkConfig(vf.EnvConfig):
    talker: vf.AgentConfig = vf.AgentConfig()


class TalkEnv(vf.Env[TalkConfig]):
    """Three turns, answered by whether they had a small letter, and by Python's global random numbers."""

    async def run(self, task, agents):
        good = 0.0
        async with agents.talker.interaction(task) as interaction:
            segment = await interaction.turn()
            for turn in range(3):
                if segment.terminated:
                    break
                right = any(letter.islower() for letter in segment.last_reply)
                good += right / 3
                if turn < 2:
                    word = random.choice(["And", "Then", "Now"])
                    segment = await interaction.turn(f"{word} {'more' if right else task.data.wanted}")
        interaction.trace.record_reward("good", good, 1.0)


class TalkTaskset(vf.Taskset[TalkTask, vf.TasksetConfig]):
    def load(self):
        for number in range(12):
            yield TalkTask(
                TalkData(prompt=f"Talk {number}.", system_prompt="Use small letters.", wanted="small"), self.config.task
            )
