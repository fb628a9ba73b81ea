"""The table of `make faults`, after the tests' own lines."""

from faults import ALL, TABLE


def pytest_terminal_summary(terminalreporter):
    """Print what was counted as a Markdown table, a row a fault."""
    if ALL and TABLE:
        terminalreporter.write_line("\n| fault | tried | outcomes |\n|---|---|---|")
        for row, outcomes in TABLE.items():
            words = ", ".join(f"{number} {outcome}" for outcome, number in outcomes.items())
            terminalreporter.write_line(f"| {row} | {sum(outcomes.values())} | {words} |")
