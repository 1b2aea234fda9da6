"""Where a call goes: from the names that a client uses to a pool, and the model that its engines know."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.identity import Identity, Place
from gateway.openai.errors import ApiError, bad_request, not_found
from gateway.settings import DEFAULT_POOL, Config, Stage, Workflow

WHOLE = "workflow/"
"""`model: workflow/NAME` asks the gateway to walk the whole graph."""


_PATTERN = frozenset("*?[")


@dataclass(frozen=True, slots=True)
class Target:
    """The pool that serves a call, and its model's name."""

    pool: str
    model: str


class Directory:
    """Resolves models, workflows and stages by the configuration. Unknown names in a path or as model are 404."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._pools = {name: pool for name, pool in config.pools.items() if pool.kind == "llm"}
        # The default pool first, so that it wins where several pools serve one model.
        ordered = sorted(self._pools.items(), key=lambda item: item[0] != DEFAULT_POOL)
        self._by_model = {pool.model: name for name, pool in reversed(ordered) if pool.model}

    @property
    def workflows(self) -> frozenset[str]:
        return frozenset(self._config.workflows)

    def models(self) -> list[str]:
        """Every name that may be used as `model`, patterns aside."""
        aliases = [
            f"{workflow}/{name}"
            for workflow, spec in self._config.workflows.items()
            for name, stage in spec.stages.items()
            if stage.kind == "llm"
        ]
        whole = [
            WHOLE + name for name, spec in self._config.workflows.items() if spec.stages and not _unwalkable(spec)
        ]
        plain = [name for name in self._config.models if not _PATTERN.intersection(name)]
        return list(dict.fromkeys([*self._by_model, *plain, *whole, *aliases]))

    def whole_workflow(self, model: str) -> Workflow | None:
        """The workflow that a model name asks to be walked; None for any other model. Raises ApiError 404, 400."""
        if not model.startswith(WHOLE):
            return None
        workflow = self._config.workflows.get(model.removeprefix(WHOLE))
        if workflow is None or not workflow.stages:
            raise self._no_model(model)
        if reason := _unwalkable(workflow):
            raise bad_request(f"{model!r} cannot be walked: {reason}", param="model")
        return workflow

    def check_place(self, place: Place | None, *, model: bool = False) -> None:
        """Refuse a path, or with `model` a model's name, that names what does not exist. Raises ApiError 404."""
        if place is None:
            return
        workflow = self._config.workflows.get(place.workflow)
        if workflow is None:
            raise not_found("workflow", place.workflow, self._config.workflows)
        if place.stage and place.stage not in workflow.stages:
            offered = [name for name, stage in workflow.stages.items() if stage.kind == "llm" or not model]
            raise not_found("stage", place.stage, offered)

    def target(self, identity: Identity, model: str) -> Target:
        """The pool for a call to a model. Raises ApiError: 404 for the model, 400 for a stage that has none."""
        by_model = self._pool_of(model)
        stage = self.stage(identity.workflow, identity.stage)
        if stage is None or (stage.kind != "llm" and identity.hinted):
            pool = by_model
        elif stage.kind != "llm":
            what = "runs SQL" if stage.kind == "sql" else "renders the answer"
            raise bad_request(f"stage {identity.stage!r} {what}: no model serves it", param="stage")
        else:
            pool = stage.pool or by_model
        return Target(pool, self._pools[pool].model or model)

    def behind(self, model: str) -> tuple[frozenset[str], tuple[str, ...]]:
        """The pools that serve a name of `models` where no stage leads elsewhere, and the names that it goes by."""
        if model.startswith(WHOLE):
            stages = self._config.workflows[model.removeprefix(WHOLE)].stages.values()
            return frozenset(stage.pool for stage in stages if stage.pool), (model,)
        pool = self._pool_of(model)
        return frozenset((pool,)), (model, self._pools[pool].model or model)

    def known_as(self, target: Target, model: str) -> tuple[str, ...]:
        """The names of what serves a call: the one that its client asked for, unless the stage has led the call away
        from it, and the one that the engines know."""
        return (model, target.model) if self._pool_of(model) == target.pool else (target.model,)

    def stage(self, workflow: str, stage: str) -> Stage | None:
        """A stage that the configuration knows."""
        spec = self._config.workflows.get(workflow)
        return spec.stages.get(stage) if spec is not None else None

    def _no_model(self, model: str) -> ApiError:
        return not_found("model", model, [*self.models(), *self._config.models])

    def _pool_of(self, model: str) -> str:
        workflow, _, stage = model.partition("/")
        known = self.stage(workflow, stage)
        if known is not None and known.pool in self._pools:
            return known.pool
        pool = self._by_model.get(model) or self._config.alias(model) or (model if model in self._pools else None)
        if pool is None:
            raise self._no_model(model)
        return pool


def _unwalkable(workflow: Workflow) -> str | None:
    """Why only a client that drives itself can pass a workflow: a model is asked without a prompt, or several calls
    are open at once."""
    for name, stage in workflow.stages.items():
        if stage.kind == "llm" and not stage.prompt:
            return f"its stage {name!r} has no prompt"
        if stage.width > 1:
            return f"its stage {name!r} makes several calls at once"
    if any(edge.parallel for edge in workflow.edges):
        return "it has edges that are taken in parallel"
    return None
