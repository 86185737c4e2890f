"""A browser explains a picture on /docs: URL MODEL PICTURE SCREENSHOT CHROMIUM. Says what it saw, as JSON."""

import json
import sys

from playwright.sync_api import sync_playwright

address, model, picture, screenshot, chromium = sys.argv[1:]
with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
    page = browser.new_page(viewport={"width": 1100, "height": 1400})
    problems = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda r: None if r.url.startswith((address, "blob:")) else problems.append(r.url))
    page.goto(address + "/")
    page.wait_for_selector("details")
    offered = page.eval_on_selector_all("#models option", "all => all.map(one => one.value)")
    page.fill("input[name=model]", model)
    page.set_input_files("input[name=file]", picture)
    page.click("form button")
    page.wait_for_selector("#answer table", timeout=60_000)
    width = page.eval_on_selector("#answer img", "image => image.naturalWidth")
    classes = page.inner_text("#answer table")
    page.screenshot(path=screenshot)
    page.fill("input[name=target]", "no such class")
    page.click("form button")
    page.wait_for_selector("#error:not(:empty)", timeout=60_000)
    said = page.inner_text("#error")
    addresses = page.locator("details").count()
    browser.close()
seen = {"offered": offered, "width": width, "classes": classes, "said": said, "addresses": addresses}
print(json.dumps({**seen, "problems": [p for p in problems if "400" not in p]}))
