"""Forms of boxes and points in answers, and what only looks like one."""

import gc
import time

import pytest

from qwen25vl.grounding import read_boxes, read_points

SAME = {"original_size": (1000, 1000), "model_size": (1000, 1000)}


def boxes_of(text: str) -> list[tuple[str, tuple[int, ...]]]:
    return [(box.label, box.pixels) for box in read_boxes(text, **SAME)]


def points_of(text: str) -> list[tuple[float, float]]:
    return [(point.x, point.y) for point in read_points(text, **SAME)]


CUP = ("cup", (1, 2, 30, 40))
DOG = ("dog", (5, 6, 70, 80))


@pytest.mark.parametrize(
    "text",
    [
        '{"bbox": [1, 2, 30, 40], "label": "cup"}',
        '{"box_2d": [1, 2, 30, 40], "label": "cup"}',
        '{"label": "cup", "box": [1, 2, 30, 40]}',
        '{"boxes": [[1, 2, 30, 40]], "labels": ["cup"]}',
        '{"bounding_box": [1, 2, 30, 40], "name": "cup"}',
        '{"boundingBox": {"xmin": 1, "ymin": 2, "xmax": 30, "ymax": 40}, "class": "cup"}',
        '{"bbox_2d": [[1, 2], [30, 40]], "label": "cup"}',
        '{"bbox_2d": [(1, 2), (30, 40)], "label": "cup"}',
        '{"bbox_2d": ((1, 2), (30, 40)), "label": "cup"}',
        '{"bbox_2d": (1, 2, 30, 40), "label": "cup"}',
        '{"bbox_2d": [1, 2, 30, 2, 30, 40, 1, 40], "label": "cup"}',
        '{"quad": [[1, 2], [30, 2], [30, 40], [1, 40]], "label": "cup"}',
        '{"quad_2d": [1, 2, 30, 2, 30, 40, 1, 40], "label": "cup"}',
        '{"polygon": [[1, 20], [15, 2], [30, 20], [15, 40]], "label": "cup"}',
        '{"polygon": [1, 20, 15, 2, 30, 20, 15, 40, 14, 39], "label": "cup"}',
        '{"polygon": [{"x": 1, "y": 2}, {"x": 30, "y": 2}, {"x": 30, "y": 40}], "label": "cup"}',
        '{"bbox": [1, 2, 30, 40], "polygon": [[1, 2], [30, 2], [30, 40]], "label": "cup"}',
        '{"bbox_2d": {"x1": 1, "y1": 2, "x2": 30, "y2": 40}, "label": "cup"}',
        '{"label": "cup", "x1": 1, "y1": 2, "x2": 30, "y2": 40}',
        '{"label": "cup", "x1": "1", "y1": "2", "x2": "30", "y2": "40px"}',
        '{"bbox": {"left": 1, "top": 2, "right": 30, "bottom": 40}, "label": "cup"}',
        '{"bbox": {"top": 2, "left": 1, "width": 29, "height": 38}, "label": "cup"}',
        '{"label": "cup", "x": 1, "y": 2, "w": 29, "h": 38}',
        '{"label": "cup", "position": {"x": 1, "y": 2, "width": 29, "height": 38}}',
        '{"bbox": {"x_min": 1, "y_min": 2, "x_max": 30, "y_max": 40}, "label": "cup"}',
        '{"bbox": {"top_left": [1, 2], "bottom_right": [30, 40]}, "label": "cup"}',
        '{"bbox": [{"x": 1, "y": 2}, {"x": 30, "y": 40}], "label": "cup"}',
        '{"cup": {"bbox_2d": [1, 2, 30, 40]}}',
        '{"cup": [1, 2, 30, 40]}',
        '{"cup": [[1, 2, 30, 40]]}',
        '{"cup": [{"bbox_2d": [1, 2, 30, 40]}]}',
        '{"cup": {"box": {"x1": 1, "y1": 2, "x2": 30, "y2": 40}}}',
        '{"objects": {"cup": [1, 2, 30, 40]}}',
        '[{"cup": [1, 2, 30, 40]}]',
        '{"cup": [1, 2, 30, 40], "dog": null}',
        '{"cup": [[1, 2, 30, 40], [5, 6, 70,',
        '{"result": {"label": "cup", "location": {"bbox": [1, 2, 30, 40]}}}',
        '{"label": "cup", "location": [1, 2, 30, 40]}',
        '{"bbox_2d": [1, 2, 30, 40], "text": "cup"}',
        '{"bbox_2d": [1, 2, 30, 40], "category": "cup"}',
        '{"bbox_2d": [1, 2, 30, 40], "type": "cup"}',
        '{"bbox_2d": [1, 2, 30, 40], "ref": "cup", "score": 0.9}',
        '{"bbox_2d": [1, 2, 30, 40], "description": "cup"}',
        '{"bbox_2d": [1, 2, 30, 40], "label": ["cup"]}',
        '{"bbox_2d": [1, 2, 30, 40], "label": {"name": "cup"}}',
        '{"found": "[{\\"bbox_2d\\": [1, 2, 30, 40], \\"label\\": \\"cup\\"}]"}',
        (
            '{"found": "{\\"in\\": \\"{\\\\\\"bbox\\\\\\": [1, 2, 30, 40], \\\\\\"label\\\\\\": '
            '\\\\\\"cup\\\\\\"}\\"}"}'
        ),
        '["{\\"bbox_2d\\": [1, 2, 30, 40], \\"label\\": \\"cup\\"}"]',
        '{"type": "text", "text": "[{\\"bbox_2d\\": [1, 2, 30, 40], \\"label\\": \\"cup\\"}]"}',
        '{\\"bbox_2d\\": [1, 2, 30, 40], \\"label\\": \\"cup\\"}',
        '"{\\"bbox_2d\\": [1, 2, 30, 40], \\"label\\": \\"cup\\"}"',
        '{bbox_2d: [1, 2, 30, 40], label: "cup"}',
        "{bbox_2d: [1, 2, 30, 40], label: cup}",
        "{'label': 'cup', 'bbox_2d': ['1', '2', '30', '40']}",
        "{“bbox_2d”: [1, 2, 30, 40], “label”: “cup”}",
        '{"bbox_2d": [1., 2., 30., 40.], "label": "cup"}',
        '{"bbox_2d": [1e0, 2.0, +30, 40.00], "label": "cup"}',
        '{"bbox_2d": [1 2 30 40], "label": "cup"}',
        '{"bbox_2d": "1 2 30 40", "label": "cup"}',
        '{"bbox_2d": "(1,2),(30,40)", "label": "cup"}',
        '{"bbox_2d": "<box>(1,2),(30,40)</box>", "label": "cup"}',
        '{"bbox_2d": np.array([1, 2, 30, 40]), "label": "cup"}',
        '{"bbox_2d": [1, 2, 30, 40,], "label": "cup",}',
        '{"bbox_2d": [1, 2, 30, 40}, "label": "cup"}',
        '{"bbox_2d": [1, 2, 30, 40] "label": "cup"}',
        '{"bbox_2d": [1, 2, 30, 40], // it\'s there\n "label": "cup"}',
        '"bbox_2d": [1, 2, 30, 40], "label": "cup"}\n```',
        '"label": "cup", "bbox_2d": [1, 2, 30, 40]}',
        "bbox_2d: [1, 2, 30, 40], label: cup\n\n",
        "- label: cup\n  bbox_2d: [1, 2, 30, 40]\n",
        '{"cup": "[1, 2, 30, 40]"}',
        '{"label": "cup", "quad": {"x1": 1, "y1": 2, "x2": 30, "y2": 2, "x3": 30, "y3": 40, '
        '"x4": 1, "y4": 40}}',
        ':-( The cat\'s not here ("yet), but {"bbox_2d": [1, 2, 30, 40], "label": "cup"}',
        "<ref>cup</ref><box>(1,2),(30,40)</box>",
        "There is <ref> cup </ref><box>(1, 2),(30, 40)</box>.",
        "<ref>cup</ref><quad>(1,2),(30,2),(30,40),(1,40)</quad>",
        "<ref>cup</ref><bbox>1 2 30 40</bbox>",
        "<|object_ref_start|>cup<|object_ref_end|><|quad_start|>(1,2),(30,2),(30,40),(1,40)<|quad_end|>",
        "<|object_ref_start|>cup<|object_ref_end|><|box_start|>(1,2,30,40)<|box_end|>",
        "<|object_ref_start|>cup<|object_ref_end|><|box_start|>[[1, 2], [30, 40]]<|box_end|>",
        '<bbox x1="1" y1="2" x2="30" y2="40" label="cup"/>',
        (
            "<think>Maybe [{'bbox_2d': [7, 7, 9, 9]}]?</think>\n"
            "[{'bbox_2d': [1, 2, 30, 40], 'label': 'cup'}]"
        ),
    ],
)  # fmt: skip
def test_one_cup_in_every_form(text: str) -> None:
    """Each of these lost the box, its label or both, or gave another box."""
    assert boxes_of(text) == [CUP]
    assert points_of(text) == []


@pytest.mark.parametrize(
    "text",
    [
        (
            '[{"bbox": [1, 2, 30, 40], "label": "cup"}, {"bbox": [5, 6, 70, 80], "label": "dog"}, '
            '{"bbox": [9, 9,'
        ),
        '[{"bbox": [1, 2, 30, 40], "label": "cup}, {"bbox": [5, 6, 70, 80], "label": "dog"}]',
        '[{"bbox": [1, 2, 30, 40], "label": "cup", "bbox": [5, 6, 70, 80], "label": "dog"}]',
        '{"bbox": [[1, 2, 30, 40], [5, 6, 70, 80]], "label": ["cup", "dog"]}',
        (
            '{"boxes": [[1, 2, 30, 40], [5, 6, 70, 80]], "labels": ["cup", "dog"], "scores": [0.9, '
            '0.8]}'
        ),
        '{"boxes": [{"x1": 1, "y1": 2, "x2": 30, "y2": 40, "label": "cup"}, '
        '{"x1": 5, "y1": 6, "x2": 70, "y2": 80, "label": "dog"}]}',
        '{"cup": [1, 2, 30, 40], "dog": [[5, 6], [70, 80]]}',
        '{"cup": {"bbox": [1, 2, 30, 40]}, "dog": {"bbox": [5, 6, 70, 80]}}',
        '{"objects": [{"cup": [1, 2, 30, 40]}, {"dog": [5, 6, 70, 80]}]}',
        '{"bbox": [1, 2, 30, 40], "label": "cup"}\n{"bbox": [5, 6, 70, 80], "label": "dog"}',
        '[{"bbox": [1, 2, 30, 40], "label": "cup"} {"bbox": [5, 6, 70, 80], "label": "dog"}]',
        '```json\n{"bbox": [1, 2, 30, 40], "label": "cup"}\n```\nand\n'
        '```\n{"bbox": [5, 6, 70, 80], "label": "dog"}\n```',
        "- label: cup\n  bbox_2d: [1, 2, 30, 40]\n- label: dog\n  bbox_2d: [5, 6, 70, 80]",
        "bbox_2d: [1, 2, 30, 40]\nlabel: cup\nbbox_2d: [5, 6, 70, 80]\nlabel: dog\n\nThat is all.",
        "<ref>cup</ref><box>(1,2),(30,40)</box> and <ref>dog</ref><box>(5,6),(70,80)</box><box>(9,",
    ],
)  # fmt: skip
def test_each_of_several_keeps_its_own_label(text: str) -> None:
    """One broken object took the label of the next; a cut-off end lost what was complete."""
    assert boxes_of(text) == [CUP, DOG]


def test_quotes_in_labels_and_escapes() -> None:
    """An apostrophe or an unescaped quote ended the label, and the box after it was lost."""
    assert boxes_of(
        "[{'bbox': [1, 2, 3, 4], 'label': 'the cat's bowl'}, {'bbox': [5, 6, 7, 8]}]"
    ) == [
        ("the cat's bowl", (1, 2, 3, 4)),
        ("", (5, 6, 7, 8)),
    ]
    assert boxes_of('{"bbox": [1, 2, 3, 4], "text": "a "big" cup"}') == [
        ('a "big" cup', (1, 2, 3, 4))
    ]
    assert (
        boxes_of(r'{"bbox": [1, 2, 3, 4], "text": "\ud83c\udf4e \ud83c caf\u00e9"}')[0][0]
        == "🍎 � café"
    )
    inner = r'{"bbox": [1, 2, 3, 4], "text": "it says {\"bbox\": [5, 6, 7, 8]}"}'
    assert boxes_of(inner) == [('it says {"bbox": [5, 6, 7, 8]}', (1, 2, 3, 4))]


def test_the_order_is_x_before_y() -> None:
    """Other models write y first under box_2d; this family never does."""
    (box,) = read_boxes('{"box_2d": [10, 200, 30, 400]}', **SAME)
    assert (box.x1, box.y1, box.x2, box.y2) == (10, 200, 30, 400)
    (box,) = read_boxes('{"bbox": {"ymin": 200, "xmin": 10, "ymax": 400, "xmax": 30}}', **SAME)
    assert (box.x1, box.y1, box.x2, box.y2) == (10, 200, 30, 400)


def test_a_quad_keeps_what_was_written() -> None:
    """The corners of a turned quad are not those of the box around it."""
    (box,) = read_boxes('{"quad": [20, 0, 40, 20, 20, 40, 0, 20]}', **SAME)
    assert box.pixels == (0, 0, 40, 40)
    assert box.raw == (20, 0, 40, 20, 20, 40, 0, 20)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('<tool_call>\n{"name": "computer_use", "arguments": {"action": "left_click", '
         '"coordinate": [100, 250]}}\n'
         "</tool_call>", [(100, 250)]),
        ('<tool_call>{"name": "computer_use", "arguments": "{\\"action\\": \\"left_click\\", '
         '\\"coordinate\\": [100, 250]}"}</tool_call>', [(100, 250)]),
        ('<tool_call>{"name": "computer_use", "arguments": "{\\"action\\": \\"left_click\\", '
         '\\"coordinate\\": [100, 250]', [(100, 250)]),
        ('{"name": "mobile_use", "arguments": {"action": "swipe", "coordinate": [100, 250], '
         '"coordinate2": [9, 50]}}',
         [(100, 250), (9, 50)]),
        ('{"action": "left_click_drag", "start_coordinate": (100, 250), "end_coordinate": (9, 50)}',
         [(100, 250), (9, 50)]),
        ('{"action": "click", "coordinate": "[100, 250]"}', [(100, 250)]),
        ('{"action": "click", "coordinate": "100, 250"}', [(100, 250)]),
        ('{"action": "click", "coordinate": [[100, 250]]}', [(100, 250)]),
        ('{"action": "click", "coordinate": {"x": 100, "y": 250}}', [(100, 250)]),
        ('{"action": "click", "x": 100, "y": 250}', [(100, 250)]),
        ('{"name": "click", "arguments": {"x": 100, "y": 250}}', [(100, 250)]),
        ('{"action": "swipe", "x1": 100, "y1": 250, "x2": 9, "y2": 50}', [(100, 250), (9, 50)]),
        ('{"action": "drag", "start_x": 100, "start_y": 250, "end_x": 9, "end_y": 50}',
         [(100, 250), (9, 50)]),
        ("Thought: It's (maybe) there: 3, 4.\nAction: click(point='<point>100 250</point>')",
         [(100, 250)]),
        ("Action: click(point='<point>100 250</point>", [(100, 250)]),
        ("<point>100, 250</point>", [(100, 250)]),
        ("<point>(100, 250)</point>", [(100, 250)]),
        ("<point>[[100, 250]]</point>", [(100, 250)]),
        ("<points>100 250, 9 50</points>", [(100, 250), (9, 50)]),
        ('<points x1="100" y1="250" x2="9" y2="50" alt="a">b</points>', [(100, 250), (9, 50)]),
        ("<|box_start|>(100,250)<|box_end|>", [(100, 250)]),
        ("Action: click(start_box='(100,250)')", [(100, 250)]),
        ("Action: click(start_box='<|box_start|>(100,250)<|box_end|>')", [(100, 250)]),
        ("Action: drag(start_box='<|box_start|>(100,250)<|box_end|>', "
         "end_box='<|box_start|>(9, 50)<|box_end|>')",
         [(100, 250), (9, 50)]),
        ("drag(start_point='<point>100 250</point>', end_point='<point>9 50</point>')",
         [(100, 250), (9, 50)]),
        ("Action: scroll(start_box='(100,250)', direction='down')", [(100, 250)]),
        ('{"thought": "I click(7, 7).", "action": "click(start_box=\'(100,250)\')"}', [(100, 250)]),
        ("pyautogui.click(x=100, y=250)", [(100, 250)]),
        ("```python\npyautogui.doubleClick(100, 250, interval=0.5)\n```", [(100, 250)]),
        ("pyautogui.click(100, 250, 2, 0.25)", [(100, 250)]),
        ("pyautogui.moveTo(100, 250)\npyautogui.dragTo(9, 50, duration=1)", [(100, 250), (9, 50)]),
        ("pyautogui.scroll(-5, x=100, y=250)", [(100, 250)]),
        ("swipe(100, 250, 9, 50)", [(100, 250), (9, 50)]),
        ("swipe(start=(100, 250), end=[9, 50])", [(100, 250), (9, 50)]),
        ("long_press((100, 250))", [(100, 250)]),
        ("{'point_2d': (100, 250), 'label': 'ok'}", [(100, 250)]),
        ('{"point": [100, 250]}', [(100, 250)]),
        ('{"points": [[100, 250], [9, 50]], "label": "ok"}', [(100, 250), (9, 50)]),
        ('{"points": [{"x": 100, "y": 250}, {"x": 9, "y": 50}]}', [(100, 250), (9, 50)]),
        ('{"label": "ok", "x": 100, "y": 250}', [(100, 250)]),
        ("<think>click(7, 7)? No: {'point_2d': [8, 8]}</think>click(100, 250)", [(100, 250)]),
        ("click(7, 7)? No.</think>click(100, 250)", [(100, 250)]),
    ],
)  # fmt: skip
def test_points_of_an_agent(text: str, wanted: list[tuple[int, int]]) -> None:
    """Actions gave no point, or the same point for the call and again for the tag inside."""
    assert points_of(text) == wanted
    assert boxes_of(text) == []


def test_an_action_on_a_box() -> None:
    """Some agents write the box of what they click."""
    for text in ("click(start_box='(1,2,30,40)')",
                 '{"action": "click", "coordinate": [1, 2, 30, 40]}',
                 "CLICK(box=[[1, 2, 30, 40]], element_type='button')"):  # fmt: skip
        assert [box for _, box in boxes_of(text)] == [(1, 2, 30, 40)], text
        assert points_of(text) == []


@pytest.mark.parametrize(
    "text",
    [
        "The four numbers are 1, 2, 30 and 40.",
        "The list is [1, 2, 30, 40].",
        "[1, 2, 30, 40]",
        "[[1, 2, 30, 40], [5, 6, 70, 80]]",
        "(100, 250)",
        "It costs $3.50 (was 4.20), see pages [12, 13, 14, 15]; born 2001-02-03, 10:30.",
        "The point (3, 4) lies on the line through (1, 2) and (5, 6).",
        "Box: 4 items. Points: 21, 19. Coordinates: 48.85, 2.35.",
        '{"scores": [1, 2, 3, 4]}',
        '{"prices": [10, 20, 30, 40], "years": [2019, 2020, 2021, 2022]}',
        '{"unit_price": [1, 2, 30, 40]}',
        '{"Revenue (USD)": [12, 15, 18, 22], "Cost": [5, 6, 7, 9]}',
        '{"labels": ["Q1", "Q2", "Q3", "Q4"], "Berlin": [12, 15, 18, 22]}',
        '{"Q1": [1, 2, 3, 4], "Q2": [5, 6, 7, 8]}',
        '{"2019": [1, 2, 3, 4]}',
        '{"cup": [1, 2, 30, 40], "plates": 3}',
        '{"cup": [30, 40, 1, 2]}',
        '{"chart": {"Berlin": [1, 2, 3, 4]}}',
        "Label: a list [1, 2, 3, 4]",
        '{"cup": [1, 2, 30, 40, 50]}',
        '{"cup": [1, 2, 3000, 4000]}',
        '{"name": "A", "wins": [1, 2, 30, 40]}',
        '{"label": "sales", "data": [10, 20, 30, 40]}',
        '{"date": [2024-01-02, 3, 4, 5], "bbox": [1/2, 2, 3, 4]}',
        '{"x": 3, "y": 4}',
        '[{"x": 1, "y": 2}, {"x": 2, "y": 4}]',
        '{"series": [{"x": 1, "y": 2}, {"x": 2, "y": 4}]}',
        '{"margin": {"left": 1, "top": 2, "right": 3, "bottom": 4}}',
        '{"team": "A", "points": [10, 12, 8, 15]}',
        '{"type": "Point", "coordinates": [100, 45]}',
        '{"city": "Paris", "coordinates": [48.8566, 2.3522]}',
        '{"bbox_3d": [1, 2, 3, 4, 5, 6, 7, 8, 9]}',
        '{"bbox_2d": ["x1", "y1", "x2", "y2"], "label": "cup"}',
        '{"bbox_2d": [1, 2, 30, 40%]}',
        '{"bbox_2d": "from 1 2 to 30 40"}',
        '{"bbox_2d": [[1, 2], [30, 40]',
        '{"point_2d": [1, 2, 3, 4]}',
        "```python\nboxes = {'cup': [1, 2, 30, 40]}\nimage.crop((1, 2, 30, 40))\n```",
        "df = pd.DataFrame({'a': [1, 2, 3, 4], 'b': [5, 6, 7, 8]})",
        "x = {'a': [1, 2, 3, 4]}",
        "ax.text(x=3, y=4); range(1, 10); box = Box(1, 2, 30, 40); rect(x1=1, y1=2, x2=3, y2=4)",
        "type(content='100 250'); wait(5, 6); hotkey(key='1 2'); scroll(3, 4); press('1, 2')",
        (
            '<rect x="1" y="2" width="3" height="4"/><svg viewBox="0 0 10 20"><polygon points="1,2 '
            '30,40 5,6"/></svg>'
        ),
        '<input value="1 2 30 40"><td>1 2 30 40</td>',
        '<!-- <p data-bbox="1 2 30 40">cup</p> -->',
        '<p data-bbox="1 2 30 4',
        "<box>1 2 3</box><point>1</point><point>here: 1 2</point>",
    ],
)  # fmt: skip
def test_ordinary_numbers_are_no_places(text: str) -> None:
    """A list, a price, a chart or a program must not become a box."""
    assert boxes_of(text) == []
    assert points_of(text) == []


@pytest.mark.parametrize(
    ("html", "labels"),
    [
        ('<p data-bbox="1 2 30 40">Code: <a>https://example.org/x</a></p>', ["Code: https://example.org/x"]),
        ('<p data-bbox="1 2 30 40"><b>Big</b> cup</p>', ["Big cup"]),
        ('<p data-bbox="1 2 30 40">A <i>very <b>big</b></i> cup.</p>', ["A very big cup."]),
        ('<p data-bbox="1 2 30 40">R&amp;D &lt;3 caf&eacute;&nbsp;&#8364;</p>', ["R&D <3 café €"]),
        ('<p title="a > b" data-bbox="1 2 30 40">cup</p>', ["cup"]),
        ("<P CLASS=x\n DATA-BBOX = '1, 2, 30, 40'>cup</P>", ["cup"]),
        ("<p data-bbox=1,2,30,40>cup</p>", ["cup"]),
        ('<p data-bbox="[1, 2, 30, 40]">cup</p>', ["cup"]),
        ('<div data-bbox="[[1, 2], [30, 2], [30, 40], [1, 40]]">cup</div>', ["cup"]),
        ('<p data-polygon="1 2 30 2 30 40 1 40">cup</p>', ["cup"]),
        ('<p data-polygon="1,2 30,2 30,40 1,40" data-bbox="1 2 30 40">cup</p>', ["cup"]),
        ('<p data-bbox="1 2 30 40">2 < 3 and 4 > 1</p>', ["2 < 3 and 4 > 1"]),
        ('<p data-bbox="1 2 30 40">one<br/>two\n  three</p>', ["one two three"]),
        ('<p data-bbox="1 2 30 40">a<!-- no > <b> -->b</p>', ["ab"]),
        ('<img data-bbox="1 2 30 40" alt="a cup"/>', ["a cup"]),
        ('<div class="image" data-bbox="1 2 30 40"><img data-bbox="1 2 30 40"/></div>',
         ["image", "img"]),
        ('<div class="image" data-bbox="1 2 30 40"><img src="x.png"><p>A cup</p></div>', ["A cup"]),
        ('<ul data-bbox="1 2 30 40"><li data-bbox="1 2 30 40">a<li data-bbox="1 2 30 40">b</ul>',
         ["a b", "a", "b"]),
        ('<table data-bbox="1 2 30 40"><tr><td>a</td><td>b</td></tr><tr><td>c</td></tr></table>',
         ["a b c"]),
        ('<table><tr><td data-bbox="1 2 30 40">a</td><th data-bbox="1 2 30 40">b</table>',
         ["a", "b"]),
        ('<p data-bbox="1 2 30 40">a</p></div><p data-bbox="1 2 30 40">b', ["a", "b"]),
        ('<p data-bbox="1 2 30 40">a <b>big c', ["a big c"]),
        ('<p data-bbox="1 2 30 40"', ["p"]),
        ('<div data-bbox="1 2 30 40">say {"bbox_2d": [5, 6, 7, 8]}</div>',
         ['say {"bbox_2d": [5, 6, 7, 8]}']),
        ('{"html": "<p data-bbox=\\"1 2 30 40\\">cup</p>"}', ["cup"]),
        ("{\"html\": \"<p data-bbox='1 2 30 40'>cup</p>\"}", ["cup"]),
        ('```html\n<body>\n<h1 data-bbox="1 2 30 40">It\'s</h1>\n</body>\n```', ["It's"]),
        ('<style>p > b {}</style><p data-bbox="1 2 30 40">cup<script>x="</p>"</script></p>',
         ["cup"]),
    ],
)  # fmt: skip
def test_document_elements(html: str, labels: list[str]) -> None:
    """Inner tags, references and quotes cut the text short or hid the element."""
    assert boxes_of(html) == [(label, (1, 2, 30, 40)) for label in labels]


@pytest.mark.parametrize(
    "part",
    ["{a:", "[", "(", "1[", '{"a":1,', '"', "'", '\\"', "\\", "“", '{"a":"{', '{"bbox":[[1,2],',
     '{"item":', "[9 ", "[-", "click(", "click(1,", "({[", "[(]", "a=[", "```python\n{", "<", "<a",
     "<a b='", '<a b="\'', "<a b=", "<a b ", '<p data-bbox="1 2 3 4">',
     '<div data-bbox="1 2 3 4">x', "</p>", "<!--", "<script>", "&amp;", "<think>", "</think>",
     "<ref>", "<box>1", "<point>1 2", "<|quad_start|>(1,", '{"x":1,"y":2}', "9", "9e", "1 2 3 4 ",
     "- ", "\n"],
)  # fmt: skip
def test_no_text_is_slow(part: str) -> None:
    """A pattern that starts again at every letter takes minutes for 100 kB that went wrong."""
    repeated = part * (100_000 // len(part))
    gc.collect()
    gc.freeze()  # the objects of the other tests are not this one's to look through
    started = time.process_time()
    read_boxes(repeated, **SAME)
    first = time.process_time() - started
    started = time.process_time()
    read_boxes('{"bbox": [1, "' + repeated[:30_000] + '"]}', **SAME)
    read_boxes('<p data-bbox="1 2 3 4" title="' + repeated[:30_000] + "7", **SAME)
    second = time.process_time() - started
    gc.unfreeze()
    assert first < 1
    assert second < 1


@pytest.mark.parametrize(
    "text",
    [
        (
            '{"bbox_2d": {"top_left": {"x": 1, "y": 2}, "bottom_right": {"x": 30, "y": 40}}, '
            '"label": "cup"}'
        ),
        '{"bbox": {"min": {"x": 1, "y": 2}, "max": {"x": 30, "y": 40}}, "label": "cup"}',
        (
            '{"box": {"leftTop": {"y": 2, "x": 1}, "rightBottom": {"x": "30", "y": "40"}}, '
            '"label": "cup"}'
        ),
        '{"bbox_xyxy": [1, 2, 30, 40], "label": "cup"}',
        '{"bbox_xywh": [1, 2, 29, 38], "label": "cup"}',
        '{"xywh": "1, 2, 29, 38", "label": "cup"}',
        '{"bbox_2d": [1, 2, 30, 40, 0.9], "label": "cup"}',
        '{"boxes": [[1, 2, 30, 40, 0.9]], "labels": ["cup"]}',
        '{"bbox": {"x": [1, 30], "y": [2, 40]}, "label": "cup"}',
        '{"bbox_2d": [1, 2, 30, 40], "labels": "cup"}',
        "bbox_2d: [1, 2, 30, 40]\nlabel: cup\n",
        '{"type": "text", "content": "cup", "bbox_2d": [1, 2, 30, 40]}',
        '{"bbox_2d": [1, 2, 30, 40], "type": "cup"}',
    ],
)
def test_more_forms_of_one_box(text: str) -> None:
    """Corners as objects, sizes, scores and labels under other keys were lost."""
    assert boxes_of(text) == [CUP]


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ('{"location": {"x": 5, "y": 6}, "label": "cup"}', [("cup", 5, 6)]),
        ('{"position": [5, 6], "label": "cup"}', [("cup", 5, 6)]),
        ('{"keypoints": {"nose": [5, 6], "eye": [7, 8]}}', [("nose", 5, 6), ("eye", 7, 8)]),
    ],
)
def test_more_forms_of_points(text: str, points: list[tuple[str, int, int]]) -> None:
    """Points under the key of a location, and points by their names, were lost."""
    assert [(point.label, point.x, point.y) for point in read_points(text, **SAME)] == points


@pytest.mark.parametrize(
    "text",
    [
        '{"x": [1, 30], "y": [2, 40]}',
        '{"label": "sales", "x": [1, 30], "y": [2, 40]}',
        '{"position": [5, 6]}',
        '{"position": {"x": 5, "y": 6}}',
        '{"label": "cup", "area": [5, 6]}',
        '{"bbox_2d": [1, 2, 30, 40, 50], "label": "cup"}',
    ],
)
def test_what_only_looks_like_those_forms(text: str) -> None:
    """Series of a chart, sizes, and five numbers without a score."""
    assert (boxes_of(text), points_of(text)) == ([], [])
