export default class RFB { constructor(target: Element | null, url: string, options: object); [key: string]: any; }
