"""The chat's settings: the system prompt, how answers are drawn, what computes them; checked as they are typed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finetune_local.gui.i18n.translate import sentence
from finetune_local.gui.pages.chat import room
from finetune_local.gui.pages.chat.state import ChatState
from finetune_local.gui.widgets import controls, parts
from finetune_local.gui.widgets.html import Html, h, join
from finetune_local.inference.sampling import Sampling
from finetune_local.spec.run import ModelSettings, RunSpec
from finetune_local.system.errors import SpecError

if TYPE_CHECKING:
    from finetune_local.gui.shell.context import Context
    from finetune_local.gui.shell.windows import Window


class ChatPanel:
    """The components; to be made within the page, where the panel shall lie over its right side."""

    def __init__(self, context: Context) -> None:
        import gradio as gr

        self._context, t = context, context.t
        with gr.Column(elem_id="chat-settings", visible=False) as self.column:
            close = parts.button("×", "settings", kind="quiet small", title=t("common.close"))
            self.close = parts.view(h("div", h("h2", t("chat.settings")), close, class_="row between"), id="chat-close")
            self.system = gr.Textbox(
                label=t("chat.system"), info=t("chat.system_info"), lines=3, max_lines=8, elem_id="chat-system"
            )
            self.problem = parts.view(id="chat-problem")
            fields = Sampling.model_fields
            self._sampling = {name: controls.control(t, f"sampling.{name}", fields[name]) for name in fields}
            self._backend = controls.control(t, "backend", RunSpec.model_fields["backend"], id="chat-backend")
            precision = ModelSettings.model_fields["precision"]
            self._precision = controls.control(t, "model.precision", precision, id="chat-precision")

    @property
    def components(self) -> list[Any]:
        """All that shown() gives values to."""
        return [self.column, self.system, self.problem, *self._settings()]

    def wire(self) -> None:
        """Keep what is typed, and say what cannot be."""
        import gradio as gr

        self._context.on(self.system.input, self._set_system, self.system, None, latest=True)
        self._context.on(
            lambda *given, **more: gr.on([one.input for one in self._settings()], *given, **more),
            self._set,
            self._settings(),
            self.problem,
            latest=True,
        )

    def shown(self, window: Window) -> dict[Any, Any]:
        """The panel as this window has it."""
        import gradio as gr

        state = window.state(ChatState)
        return {
            self.column: gr.Column(visible=state.settings),
            self.system: state.system,
            self._backend: state.backend,
            self._precision: state.precision,
            self.problem: self._problem(window),
            **{control: str(state.sampling.get(name, "")) for name, control in self._sampling.items()},
        }

    def _settings(self) -> list[Any]:
        return [*self._sampling.values(), self._backend, self._precision]

    def _set_system(self, window: Window, text: str) -> None:
        window.state(ChatState).system = text

    def _set(self, window: Window, *values: Any) -> Html:
        *sampling, backend, precision = values
        typed = {
            name: given
            for (name, field), value in zip(Sampling.model_fields.items(), sampling, strict=True)
            if (given := controls.setting_value(field, value)) is not None
        }
        state = window.state(ChatState)
        state.sampling, state.backend, state.precision = typed, backend or "auto", precision or ""
        return self._problem(window)

    def _problem(self, window: Window) -> Html:
        try:
            room.sampling(window)
        except SpecError as error:
            lines = sentence(self._context.t, error).splitlines()
            return join([h("p", line, class_="hint bad", role="status") for line in lines])
        return Html("")
