// On the disk a page may not read the others, so there search shows titles alone.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

// The theme lets the keyboard into what scrolls sideways, but looks for it only when
// the window changes. A click, or Enter on a button, may have unfolded more.
addEventListener("click", () => dispatchEvent(new Event("resize")));

// The theme's arrow beside a page with pages below it has no name for a screen reader.
addEventListener("DOMContentLoaded", () => {
  for (const arrow of document.querySelectorAll(".has-children > details > summary"))
    arrow.setAttribute("aria-label", "Pages below " + arrow.closest("li").querySelector("a").textContent);
});
