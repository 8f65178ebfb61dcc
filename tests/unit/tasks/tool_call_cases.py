"""Templates and conversations with tools."""

from typing import Any

from tests.chat_cases import tokenizer

QWEN = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" %}
        {%- set ns.multi_step_tool = false %}{%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}GENERATION
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}
            {{- '<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls or [] %}
            {%- if (loop.first and content) or (not loop.first) %}{{- '\\n' }}{%- endif %}
            {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' }}
            {{- tool_call.arguments if tool_call.arguments is string else tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>' }}ENDGENERATION{{- '\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or messages[loop.index0 - 1].role != "tool" %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != "tool" %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

LLAMA = """{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" + message.content + "<|eot_id|>" }}
    {%- elif 'tool_calls' in message %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}GENERATION
        {{- '{"name": "' + call.name + '", "parameters": ' }}{{- call.arguments | tojson }}{{- "}<|eot_id|>" }}ENDGENERATION
    {%- elif message.role == 'assistant' %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}GENERATION
        {{- message.content | trim + '<|eot_id|>' }}ENDGENERATION
    {%- else %}
        {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}
        {%- if tools and loop.first %}{{- 'Functions:\\n' + (tools | tojson) + '\\n' }}{%- endif %}
        {{- message.content | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""

MISTRAL = """{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {%- if tools and loop.first %}{{- '[TOOLS] ' + (tools | tojson) + '[/TOOLS]' }}{%- endif %}
        {{- '[INST] ' + message.content + '[/INST]' }}
    {%- elif message.tool_calls %}GENERATION
        {{- '[CALLS] [' }}
        {%- for call in message.tool_calls %}{{- call.function | tojson }}{{- ', ' if not loop.last }}{%- endfor %}
        {{- ']' + eos_token }}ENDGENERATION
    {%- elif message.role == 'assistant' %}GENERATION{{- ' ' + message.content | trim + eos_token }}ENDGENERATION
    {%- else %}{{- '[RESULTS] ' + message.content + '[/RESULTS]' }}
    {%- endif %}
{%- endfor %}"""

TEMPLATES = {"qwen": QWEN, "llama": LLAMA, "mistral": MISTRAL}

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"Looks up {name}",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
    for name in ("weather", "time")
]


def user(said: str) -> dict[str, Any]:
    return {"role": "user", "content": said}


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def assistant(said: str = "", calls: list | None = None, thought: str | None = None) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": "assistant", "content": said}
    turn |= {"tool_calls": calls} if calls else {}
    return turn | ({"reasoning_content": thought} if thought else {})


def result(said: str) -> dict[str, Any]:
    return {"role": "tool", "content": said}


ROME, PARIS = call("weather", city="Rome", days=2), call("time", city="Paris é")
TALKS: dict[str, tuple[list[dict[str, Any]], list | None, set[str]]] = {
    "one call": ([user("Rome?"), assistant("", [ROME])], TOOLS, {*TEMPLATES}),
    "call and answer": ([user("Rome?"), assistant("", [ROME]), result("12"), assistant("It is 12.")], TOOLS, {*TEMPLATES}),
    "words and call": ([user("Rome?"), assistant("Let me see.", [ROME]), result("12"), assistant("12.")], TOOLS, {"qwen"}),
    "parallel": (
        [user("Both?"), assistant("", [ROME, PARIS]), result("12"), result("noon"), assistant("12, noon.")],
        TOOLS,
        {"qwen", "mistral"},
    ),
    "several steps": (
        [user("Rome?"), assistant("", [ROME]), result("12"), assistant("", [PARIS]), result("1"), assistant("Done.")],
        TOOLS,
        {*TEMPLATES},
    ),
    "two questions": (
        [user("Rome?"), assistant("", [ROME]), result("12"), assistant("12."), user("Paris?"), assistant("", [PARIS])],
        TOOLS,
        {*TEMPLATES},
    ),
    "without arguments": ([user("Now?"), assistant("", [call("time")])], TOOLS, {*TEMPLATES}),
    "no tools named": ([user("Now?"), assistant("", [call("time")]), result("1"), assistant("One.")], None, {*TEMPLATES}),
    "thought": ([user("2 + 2?"), assistant("4", thought="easy\\nindeed")], None, {"qwen"}),
    "thought and call": (
        [user("Rome?"), assistant("", [ROME], "look"), result("12"), assistant("12.", thought="so")],
        TOOLS,
        {"qwen"},
    ),
    "thoughts inside": ([user("2 + 2?"), assistant("<think>\n easy\n</think>\n\n4")], None, {"qwen"}),
    "tools unused": ([user("Hello"), assistant("Hi, how are you?")], TOOLS, {*TEMPLATES}),
}


def processor_of(template: str, blocks: bool = False) -> Any:
    made = tokenizer()
    made.model_max_length = 4096
    marks = ("{%- generation %}", "{%- endgeneration %}") if blocks else ("", "")
    made.chat_template = TEMPLATES[template].replace("ENDGENERATION", marks[1]).replace("GENERATION", marks[0])
    return made
