"""The job graph as a picture: Mermaid, Graphviz or text."""

from .plan import Job, Plan

FORMATS = ("mermaid", "dot", "text")


def draw(plan: Plan, form: str) -> str:
    """The picture in one of `FORMATS`."""
    return {"mermaid": mermaid, "dot": dot, "text": text}[form](plan)


def mermaid(plan: Plan) -> str:
    """For Markdown pages."""
    names = {job.id: f"j{number}" for number, job in enumerate(plan.jobs)}
    lines = ["flowchart LR"]
    lines += [f'  {names[job.id]}["{job.id}"]' for job in plan.jobs]
    lines += [f"  {names[need]} --> {names[job.id]}" for job in plan.jobs for need in job.needs]
    return "\n".join(lines) + "\n"


def dot(plan: Plan) -> str:
    """For Graphviz."""
    lines = ["digraph plan {", "  rankdir=LR;", "  node [shape=box];"]
    lines += [f'  "{job.id}";' for job in plan.jobs]
    lines += [f'  "{need}" -> "{job.id}";' for job in plan.jobs for need in job.needs]
    return "\n".join([*lines, "}"]) + "\n"


def text(plan: Plan) -> str:
    """One line per job in the order in which they run: its kind, its devices and what it waits for."""
    rows = [(job.id, job.kind, str(_devices(job)), ", ".join(job.needs) or "-") for job in plan.jobs]
    rows.insert(0, ("job", "kind", "devices", "after"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}  {d}" for a, b, c, d in rows]
    return "\n".join(lines) + "\n"


def _devices(job: Job) -> int:
    return sum(role.devices for role in job.roles.values() if not role.shared)
