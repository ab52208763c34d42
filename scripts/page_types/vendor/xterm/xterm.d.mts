export class Terminal { constructor(options: object); [key: string]: any; }
