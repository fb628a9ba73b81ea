"""A picture that follows its settings: with controls where somebody can turn them, by itself elsewhere."""

import base64
import io
from functools import cached_property, lru_cache, partial
from html import escape
from textwrap import shorten

import ipywidgets
import matplotlib.pyplot as plt
from IPython import get_ipython

from cpsd_lib.support import atomic
from cpsd_lib.viz.plots import short


def front_end():
    """Say whether a person looks on who can turn a control: False under papermill, nbconvert, pytest and a terminal."""
    # Every program that executes notebooks in batch goes through nbclient, which tells the kernel that nobody is there
    # to answer an input(); JupyterLab, the classic notebook, VS Code and Colab say that somebody is.
    kernel = getattr(get_ipython(), "kernel", None)
    return kernel is not None and bool(kernel.get_parent().get("content", {}).get("allow_stdin"))


class Explorer:
    """Settings, the picture and the numbers they give, and (made when first shown) the widget that changes them.

    draw: called with the settings as keywords, returns (figure of pyplot, numbers dict); a setting that was there before is
    not drawn again. defaults: {setting: value}; start: those that begin otherwise, or None. controls: {setting: function of a
    value that makes its widget}. buttons: {label: function of this Explorer that returns a message or None}. live: settings
    that go back to these values whenever a control moves.

    After a change, `settings`, `numbers` and `png` are the new ones. In a notebook it shows itself: the last line of a
    cell, or display().
    """

    def __init__(self, draw, defaults, start, controls, buttons=None, live=None):
        self._draw = lru_cache(256)(partial(_png, draw))  # pictures of 0.2 MB
        self._controls, self._buttons, self._live = controls, buttons or {}, live or {}
        self.settings = defaults
        self.set(**start or {})

    def set(self, **changes):
        """Change settings and draw, controls stay as they are; ValueError for what cannot be drawn: nothing has changed."""
        if changes.keys() - self.settings.keys():
            raise ValueError(f"settings are {', '.join(self.settings)}; got {', '.join(changes)}")
        settings = self.settings | changes
        self.png, self.numbers = self._draw(**settings)
        self.settings = settings
        if "widget" in self.__dict__:
            self.widget.children[-1].value = self.png

    def save(self, path):
        """Write the picture as it is now as PNG to `path` (atomically)."""
        with atomic(path) as temporary:
            temporary.write_bytes(self.png)

    @cached_property
    def controls(self):
        """The ipywidgets that change a setting each, {setting: widget}."""
        controls = {name: make(value=self.settings[name]) for name, make in self._controls.items()}
        for name, control in controls.items():
            control.observe(
                lambda change, name=name: self._try(lambda: self.set(**self._live | {name: change.new})), names="value"
            )
        return controls

    @cached_property
    def buttons(self):
        """The ipywidgets buttons, {label: button}."""
        buttons = {label: ipywidgets.Button(description=label) for label in self._buttons}
        for label, button in buttons.items():
            button.on_click(lambda _, label=label: self._try(lambda: self._buttons[label](self)))
        return buttons

    @cached_property
    def widget(self):
        """Controls, a line for messages, and the picture below, as one ipywidget."""
        row = ipywidgets.HBox([*self.controls.values(), *self.buttons.values()], layout={"flex_flow": "row wrap"})
        layout = {"max_width": "100%", "object_fit": "contain"}
        return ipywidgets.VBox([row, self.message, ipywidgets.Image(value=self.png, format="png", layout=layout)])

    @cached_property
    def message(self):
        """The line that a button or an error writes to (an ipywidgets HTML)."""
        return ipywidgets.HTML()

    def _try(self, action):
        # What a callback raises is lost in the server's log; the person who turned the control should read it.
        try:
            message = action()
        except (ValueError, OSError) as error:
            message = str(error)
        self.message.value = escape(message or "")

    def __repr__(self):
        values = {
            name: f"{x:.4g}" if isinstance(x, float) else str(x) for name, x in (self.settings | self.numbers).items()
        }
        return ", ".join(f"{name} {shorten(text, 60, placeholder=' ...')}" for name, text in values.items())

    def _repr_mimebundle_(self, include=None, exclude=None):
        # The picture goes along in any case: for GitHub, nbviewer and nbconvert, which cannot show the widget.
        plain = {"image/png": base64.b64encode(self.png).decode(), "text/plain": repr(self)}
        return self.widget._repr_mimebundle_() | plain if front_end() else plain


def _png(draw, **settings):
    """Return (PNG bytes, numbers) of a drawing."""
    buffer = io.BytesIO()
    # A class may be called "US$ or $": that is no formula. Closed, no backend shows the figure a second time.
    with plt.rc_context({"text.parse_math": False}), plt.ioff():
        figure, numbers = draw(**settings)
        # savefig's own compression takes longer than all the drawing; at level 1 the file is a third larger.
        figure.savefig(buffer, format="png", dpi="figure", pil_kwargs={"compress_level": 1})
        plt.close(figure)
    return buffer.getvalue(), numbers


def name_rows(axis, names):
    """Write names [n] one below the other at the left of an axis, at 0 to n - 1; none where nobody could read them."""
    size = min(9, 0.9 * 72 * axis.get_position().height * axis.figure.get_figheight() / len(names))
    # There is room for 1.04 inches, and a letter is 0.58 of its size wide.
    names = short(names, int(129 / size)) if size >= 4 else ()
    for row, name in enumerate(names):  # ticks would take three times as long
        axis.text(-0.022, row, name, transform=axis.get_yaxis_transform(), ha="right", va="center", fontsize=size)


def canvas(title, summary):
    """Return a new figure with a title and a line of text above where its axes will be."""
    figure = plt.figure(figsize=(13.5, 8), dpi=100, layout="none")
    figure.text(0.01, 0.97, title, fontsize=13, va="center")
    figure.text(0.01, 0.9325, summary, fontsize=11, va="center")
    return figure
