"""A picture that follows its settings: with controls where somebody can turn them, by itself elsewhere."""

import base64
import io
from functools import cached_property, lru_cache, partial
from html import escape
from textwrap import shorten
from uuid import uuid4

import ipywidgets
import matplotlib.pyplot as plt
from IPython import get_ipython
from IPython.display import display

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
    value that makes its widget}. buttons: {label: function of this Explorer that returns a message or None}. follows:
    {setting: function of its new value that returns the settings that change with it}.

    After a change, `settings`, `numbers` and `png` are the new ones. In a notebook it shows itself: the last line of a
    cell, or display().
    """

    def __init__(self, draw, defaults, start, controls, buttons=None, follows=None):
        self._draw = lru_cache(256)(partial(_png, draw))  # pictures of 0.2 MB
        self._controls, self._buttons, self._follows = controls, buttons or {}, follows or {}
        self._picture, self._shown = uuid4().hex, False
        self.settings = defaults
        self.set(**start or {})

    def set(self, **changes):
        """Change settings and draw, controls stay as they are; ValueError for what cannot be drawn: nothing has changed."""
        if changes.keys() - self.settings.keys():
            raise ValueError(f"settings are {', '.join(self.settings)}; got {', '.join(changes)}")
        settings = self.settings | changes
        self.png, self.numbers = self._draw(**settings)
        self.settings = settings
        if self._shown:
            display(self._plain(), raw=True, display_id=self._picture, update=True)

    @cached_property
    def controls(self):
        """The ipywidgets that change a setting each, and the buttons, {setting or label: widget}."""
        controls = {name: make(value=self.settings[name]) for name, make in self._controls.items()}
        for name, control in controls.items():
            control.observe(lambda change, name=name: self._try(lambda: self._move(name, change.new)), names="value")
        for label, action in self._buttons.items():
            controls[label] = ipywidgets.Button(description=label)
            controls[label].on_click(lambda _, action=action: self._try(lambda: action(self)))
        return controls

    @cached_property
    def widget(self):
        """Controls, and a line for messages, as one ipywidget; the picture is an output by itself."""
        row = ipywidgets.HBox(list(self.controls.values()), layout={"flex_flow": "row wrap"})
        return ipywidgets.VBox([row, self.message])

    @cached_property
    def message(self):
        """The line that a button or an error writes to (an ipywidgets HTML)."""
        return ipywidgets.HTML()

    def _move(self, name, value):
        changes = {name: value} | self._follows.get(name, lambda _: {})(value)
        self.set(**changes)
        for other, followed in changes.items():
            self.controls[other].value = followed

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

    def _plain(self):
        return {"image/png": base64.b64encode(self.png).decode(), "text/plain": repr(self)}

    def _ipython_display_(self):
        # The picture is an output beside the controls: it stays when a kernel is started anew, on GitHub and in nbconvert.
        self._shown = front_end()
        if self._shown:
            display(self.widget)
        display(self._plain(), raw=True, display_id=self._picture)


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
    """Write names [n] one below the other at the left of an axis, at 0 to n - 1: as many as are read at 11 points."""
    room = 72 * axis.get_position().height * axis.figure.get_figheight() / len(names)
    look = {"transform": axis.get_yaxis_transform(), "ha": "right", "va": "center", "fontsize": 11}
    shown = short(names, 19)  # there is room for 1.8 inches
    for row in range(0, len(names), max(1, round(12 / room))):  # ticks would take three times as long
        axis.text(-0.022, row, shown[row], **look)


def canvas(title, summary):
    """Return a new figure with a title and a line of text above where its axes will be."""
    # As wide as a notebook's cell in a window of 1280 pixels, so that text has its size, and low enough for the controls above.
    figure = plt.figure(figsize=(11, 5.4), dpi=100, layout="none")
    figure.text(0.01, 0.965, title, fontsize=13, va="center")
    figure.text(0.01, 0.91, summary, fontsize=11, va="center")
    return figure
