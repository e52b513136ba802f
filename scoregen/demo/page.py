"""The page: controls, images, trajectory and command. The one module that needs gradio."""

from functools import partial
from importlib.resources import files
from typing import Any

import gradio as gr

from scoregen import config
from scoregen.demo import markup
from scoregen.demo.request import Request, level, whole
from scoregen.demo.studio import Studio
from scoregen.errors import UserError

OWN, STEPS, EVALUATIONS = "the model's own", "steps", "evaluations"
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # none is fetched
# Neither a share link nor telemetry, a second server or a further protocol, whatever the environment says.
CLOSED = {"share": False, "enable_monitoring": False, "ssr_mode": False, "pwa": False, "mcp_server": False}
STYLE = files("scoregen.demo").joinpath("style.css").read_text()


def build_page(studio: Studio) -> gr.Blocks:
    """The page of a studio, for `listen`."""
    with gr.Blocks(analytics_enabled=False, title="scoregen", delete_cache=(600, 3600)) as page:
        gr.Markdown("# scoregen\nDraw from a model, and watch the images take shape.")
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                card, controls = _controls(studio)
                button = gr.Button("Draw", variant="primary", elem_id="draw")
            with gr.Column(scale=4, min_width=300):
                outputs = _outputs()
        model, label, smoothing = controls[0], controls[3], controls[-1]
        one_at_a_time: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}
        look = partial(_card, studio), model, [card, label, smoothing]
        page.load(lambda: gr.Dropdown(studio.models()), None, model, api_visibility="private")
        page.load(*look, api_visibility="private", **one_at_a_time)
        model.change(*look, api_name="card", **one_at_a_time)
        button.click(partial(_draw, studio), controls, outputs, api_name="draw", **one_at_a_time)
    return page.queue(max_size=studio.limits.waiting, default_concurrency_limit=1, api_open=False)


def listen(page: gr.Blocks, host: str, port: int, *, open_browser: bool = False) -> str:
    """Begin to serve the page; its address. UserError where host and port cannot be listened at."""
    try:
        page.launch(
            server_name=host,
            server_port=port,
            inbrowser=open_browser,
            prevent_thread_lock=True,
            quiet=True,
            show_error=False,
            footer_links=[],
            state_session_capacity=100,
            theme=gr.themes.Base(primary_hue="indigo", **FONTS),
            css=STYLE,
            **CLOSED,
        )
    except (OSError, OverflowError) as error:
        raise UserError(
            f"{host}, port {port} cannot be listened at: the port is taken, or the host is not this machine; "
            "choose another --port or --host"
        ) from error
    return str(page.local_url)


def serve(studio: Studio, host: str, port: int, *, open_browser: bool = False) -> None:
    """Serve the page of a studio until interrupted."""
    page = build_page(studio)
    print(f"the page: {listen(page, host, port, open_browser=open_browser)}   (Ctrl-C ends it)", flush=True)
    page.block_thread()


def _controls(studio: Studio) -> tuple[gr.HTML, list[gr.Component]]:
    """What is said of the model, and the controls in the order of `_request`."""
    models, limits = studio.models(), studio.limits
    model = gr.Dropdown(models, value=models[0], label="Model")
    card = gr.HTML(elem_id="card")
    seed = gr.Number(0, label="First seed", precision=0)
    images = gr.Slider(1, limits.images, value=min(16, limits.images), step=1, label="Images")
    label = gr.Textbox("", label="Class", placeholder="any", max_length=9, visible=False)
    sampler = gr.Dropdown([OWN, *config.groups()["sampler"]], value=OWN, label="Sampler")
    with gr.Row():
        unit = gr.Radio([STEPS, EVALUATIONS], value=STEPS, label="Budget in", min_width=140)
        budget = gr.Textbox(
            "", label="Number", placeholder="its own", elem_id="budget", max_length=9, min_width=120
        )
    with gr.Accordion("Guidance by class", open=False):
        guidance = gr.Number(1.0, label="Weight; 1 is none", step=0.5)
        with gr.Row():
            above = gr.Textbox("", label="Above noise level", placeholder="0", max_length=9, min_width=120)
            up_to = gr.Textbox("", label="Up to noise level", placeholder="all", max_length=9, min_width=120)
    with gr.Accordion("Settings of the sampler", open=False):
        settings = gr.Textbox("", label="key=value", placeholder="s_churn=40 grid.rho=5", max_length=500)
    smoothing = gr.Number(2.0, label="Smoothing of the closed form", step=0.5, visible=False)
    return card, [
        model, seed, images, label, sampler, unit, budget, guidance, above, up_to, settings, smoothing
    ]  # fmt: skip


def _outputs() -> list[gr.Component]:
    """What `_draw` fills."""
    message = gr.HTML('<p class="told">Choose a model, and press Draw.</p>', elem_id="message")
    pictures = gr.HTML()
    command = gr.Textbox(
        label="The same images from the command line", lines=2, interactive=False, buttons=["copy"]
    )
    downloads = gr.File(
        label="Files", elem_id="files", file_count="multiple", interactive=False, visible=False
    )
    return [message, pictures, command, downloads]


def _request(
    model: str,
    seed: float | None,
    images: float | None,
    label: str | None,
    sampler: str | None,
    unit: str | None,
    budget: str | None,
    guidance: float | None,
    above: str | None,
    up_to: str | None,
    settings: str | None,
    smoothing: float | None,
) -> Request:
    """What the controls say; empty fields leave the choice to the model."""
    number = whole("number of steps or evaluations", budget)
    return Request(
        model,
        sampler=None if sampler == OWN else sampler,
        steps=number if unit == STEPS else None,
        nfe=number if unit == EVALUATIONS else None,
        seed=whole("first seed", seed) or 0,
        images=whole("images", images) or 0,
        label=whole("class", label),
        guidance=1.0 if guidance is None else guidance,
        above=level("lowest noise level", above),
        up_to=level("highest noise level", up_to),
        smoothing=smoothing,
        settings=settings or "",
    )


def _draw(studio: Studio, *values: Any) -> list[Any]:
    """What the outputs show next; where the input is wrong, why, and the images of before."""
    try:
        answer = studio.draw(_request(*values))
    except UserError as error:
        return [markup.refused(error), *[gr.skip()] * 3]
    downloads = gr.File([str(path) for path in answer.files], visible=True)
    return [markup.told(answer), markup.pictures(answer), answer.command, downloads]


def _card(studio: Studio, model: str) -> list[Any]:
    """What a model is, and the controls that only some models have."""
    try:
        card = studio.card(model)
    except UserError as error:
        return [markup.refused(error), gr.skip(), gr.skip()]
    known = {"label": f"Class, 0 to {card.num_classes - 1}"} if card.num_classes else {"value": ""}
    label = gr.Textbox(visible=card.num_classes > 0, **known)
    return [markup.card(card), label, gr.Number(visible=card.closed_form)]
