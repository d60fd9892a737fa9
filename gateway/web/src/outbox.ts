/** What a page could not send for want of a network: kept in order, sent when it is back. */
import { signal } from "@preact/signals";

export interface Kept {
  kind: "duty" | "position" | "feedback" | "report" | "photo";
  path: string;
  body: unknown;
  /** Photos (base64 JPEG) that belong to what this report makes. */
  photos?: string[];
}
type Outcome = "sent" | "refused" | "later";
interface Shelf {
  getItem(key: string): string | null;
  setItem(key: string, value: string): void;
}

const LIMIT = 50;
const LASTING: readonly Kept["kind"][] = ["feedback", "report", "photo"];

/**
 * A bounded queue on the device. Drop rule: of duty and position only the newest counts, so an older one gives way;
 * reports, photos and feedback are kept in order up to 50, then the oldest goes.
 */
export class Outbox {
  readonly size = signal(0);
  private items: Kept[] = [];
  private key = "";
  private sending = false;

  constructor(
    private readonly send: (item: Kept) => Promise<Outcome>,
    private readonly shelf: () => Shelf,
  ) {}

  open(key: string): void {
    this.key = key;
    try {
      const old = JSON.parse(this.shelf().getItem(key) ?? "[]") as unknown;
      this.items = Array.isArray(old) ? (old as Kept[]) : [];
    } catch {
      this.items = [];
    }
    this.size.value = this.items.length;
  }

  /** Raises when the device has no room left: then nothing was kept, and the user is told. */
  add(item: Kept): void {
    const before = this.items;
    const lasting = LASTING.includes(item.kind);
    this.items = [...this.items.filter((old) => lasting || old.kind !== item.kind), item].slice(-LIMIT);
    try {
      this.save();
    } catch (error) {
      this.items = before;
      this.size.value = before.length;
      throw error;
    }
  }

  /** Sends in order until one has to wait again. */
  async flush(): Promise<void> {
    if (this.sending) return;
    this.sending = true;
    try {
      for (let item = this.items[0]; item; item = this.items[0]) {
        if ((await this.send(item)) === "later") return;
        this.items = this.items.filter((kept) => kept !== item);
        this.save();
      }
    } finally {
      this.sending = false;
    }
  }

  private save(): void {
    this.size.value = this.items.length;
    this.shelf().setItem(this.key, JSON.stringify(this.items));
  }
}
