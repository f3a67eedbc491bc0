"""What every training job does around its stage: build, run, publish, report."""

from typing import Any, Protocol

from ...specs.training import Optimization
from ..jobs import JobContext


class TrainingStage(Protocol):
    """A stage, and what it found when it is over."""

    steps: int

    def result(self) -> dict[str, Any]:
        """JSON for `result.json`."""
        ...


def train(context: JobContext, optimization: Optimization, stage: Any) -> None:
    """Run a stage under torchtitan to its last step and publish the weights as the job's model.

    `stage` fits `trainer.Stage` and `TrainingStage`; one that rolls out also has `attach(trainer)`, called before the first step.
    """
    from ..trainer.build import build_trainer, publish_model  # torchtitan is imported only where it trains

    trainer = build_trainer(context, optimization, steps=stage.steps)
    try:
        if hasattr(stage, "attach"):
            stage.attach(trainer)
        trainer.run(stage, context)
        publish_model(trainer, context)
    finally:
        trainer.close()
    context.finish(stage.result())
