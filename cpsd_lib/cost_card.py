"""The cost of a run as lines to read."""

from cpsd_lib.words import counted, memory

UNITS = (("EFLOP", 1), ("PFLOP", 1e3), ("TFLOP", 1e6), ("GFLOP", 1e9))  # name, how many in 1e18 FLOP


def card(cost):
    """Return the cost as a dozen aligned lines for a terminal, with units."""
    needs = [f"{memory(cost.teacher_gib)} for the teachers (batch {cost.teacher_batch})"] if cost.teachers else []
    needs += [f"{memory(cost.student_gib)} for a student (batch {cost.student_batch})"] if cost.students else []
    seeds = f", {cost.seeds} seeds" if cost.seeds > 1 else ""
    remarks = {
        "teachers": f"{counted(cost.teachers, 'model')}{seeds}",
        "students": f"{counted(cost.students, 'model')}{seeds}",
        "total": f"{counted(cost.trained_images, 'time')} a model trains on an image",
    }
    weights, forward = f"{cost.parameters:,}", f"{cost.forward_gflop:,.4g} GFLOP an image"
    if cost.teachers and cost.teacher_parameters != cost.parameters:
        weights += f", a teacher's {cost.teacher_parameters:,}"
        forward += f", a teacher's {cost.teacher_forward_gflop:,.4g}"
    lines = {
        "model": f"{cost.model}, {counted(cost.num_classes, 'class', 'classes')}, {cost.size} px",
        "parameters": weights,
        "forward": f"{forward} (a multiply-add is 2 FLOP)",
        "GPU memory": f"about {', '.join(needs)}" if needs else "nothing is trained",
    }
    if cost.cpsd_baselines is not None:
        lines["+ CPSD"] = f"{cost.cpsd_baselines:,.3g} baselines' training, from scratch: teachers, targets and student"
    unit, scale = next((found for found in UNITS if cost.eflop * found[1] >= 1), UNITS[-1])
    for name, eflop in {**cost.stages, "total": cost.eflop}.items():
        lines[name] = f"{eflop * scale:>9,.3f} {unit}  {remarks.get(name, '')}".rstrip()
    hours = cost.hours(100)
    time = f"{hours:,.1f} hours" if hours >= 1 else f"{hours * 3600:,.4g} seconds"
    last = f"At 100 TFLOP/s sustained that is {time}: arithmetic, not a measurement."
    return "\n".join([*(f"{name:<14}{text}" for name, text in lines.items()), last])
