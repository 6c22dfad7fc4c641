"""Control tokens of chat templates: texts that a tokenizer may parse as special tokens anywhere in a conversation.

All of them start with `<` or `[`, so that searching for all takes no longer than searching for one (8 ms for 55 MB).
"""

from __future__ import annotations

CONTROL_TOKENS = (
    "<|im_start|>", "<|im_end|>", "<|im_sep|>", "<|endoftext|>", "<|pad|>",
    "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>",
    "<|python_tag|>", "<|header_start|>", "<|header_end|>", "<|eot|>",
    "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|observation|>", "<|end|>",
    "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|call|>", "<|return|>",
    "<|start_of_role|>", "<|end_of_role|>", "<|end_of_turn|>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>",
    "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>",
    "<start_of_turn>", "<end_of_turn>", "<|turn>", "<turn|>", "<|channel>", "<channel|>",
    "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", "<bos>", "<eos>", "<s>", "</s>",
    "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[AVAILABLE_TOOLS]", "[gMASK]",
    "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>",
)  # fmt: skip
