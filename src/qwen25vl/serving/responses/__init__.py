"""OpenAI's Responses API, as a translation of chat requests.

A request becomes a `ChatRequest` (`translation`, `items`), its answer's events become items
(`output`) and the events of a stream (`stream`); `store` keeps what is asked for again by its id.
"""
